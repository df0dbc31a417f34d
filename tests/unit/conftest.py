import copy
import os
import signal
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import settings

from grove_megatron.checks.problem import Problem

# A shared machine makes single examples slow at random; pytest-timeout ends what hangs.
settings.register_profile("unit", deadline=None, database=None)
settings.load_profile("unit")

MODEL = (
    "--num-layers 2 --hidden-size 16 --num-attention-heads 2 --seq-length 8 "
    "--max-position-embeddings 8 --micro-batch-size 1 --num-experts 8 --moe-router-topk 2 "
    "--moe-token-dispatcher-type alltoall"
)
GROVE = "--grove-num-groups 4 --grove-adjugate-ffn-hidden-size 8"


def in_lines(check: Callable[..., Any]) -> Callable[..., Any]:
    """A check, or a diagnosis, with its problems as they are shown."""

    def shown(*given: Any, **named: Any) -> Any:
        found = check(*given, **named)
        if found is None or isinstance(found, Problem):
            return found and str(found)
        if hasattr(found, "problems"):
            return replace(found, problems=[*map(str, found.problems)])
        return [*map(str, found)]

    return shown


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """What is refused ignores SIGTERM for the rest of its process; tests share theirs."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@cache
def parser() -> ArgumentParser:
    """Megatron's with the Grove flags. Half a second; every command line of a run shares it."""
    from megatron.training.arguments import add_megatron_arguments

    from grove_megatron.arguments import add_grove_arguments

    return add_grove_arguments(add_megatron_arguments(ArgumentParser(allow_abbrev=False)))


@pytest.fixture
def parse() -> Callable[[str], Namespace]:
    """As Megatron parses a small MoE plus the given flags."""
    from grove_megatron.training.checks import as_launched

    def parse(flags: str = GROVE) -> Namespace:
        args = copy.deepcopy(parser().parse_args([*MODEL.split(), *flags.split()]))
        as_launched(args)
        return args

    return parse


@pytest.fixture
def subprocess_environment() -> dict[str, str]:
    """The environment of a fresh interpreter that imports what this one does."""
    import grove_megatron

    root = os.path.dirname(os.path.dirname(os.path.abspath(grove_megatron.__file__)))
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
