import copy
import os
import signal
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from hypothesis import settings

# A shared machine makes single examples slow at random; pytest-timeout ends what hangs.
settings.register_profile("unit", deadline=None, database=None)
settings.load_profile("unit")

MODEL = (
    "--num-layers 2 --hidden-size 16 --num-attention-heads 2 --seq-length 8 "
    "--max-position-embeddings 8 --micro-batch-size 1 --num-experts 8 --moe-router-topk 2 "
    "--moe-token-dispatcher-type alltoall"
)
GROVE = "--grove-num-groups 4 --grove-adjugate-ffn-hidden-size 8"


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
