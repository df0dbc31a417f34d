"""``grove doctor``: would this command line run, and what would it do?"""

import copy
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..arguments import add_grove_arguments, report_errors, select_layer, yaml_problems
from ..planner.report import plan, plan_lines
from ..runtime import cuda_is_here
from . import gpt
from .checks import (
    command_line_problems,
    config_problems,
    megatrons_refusal,
    restore_from_checkpoint,
)
from .cpu_arguments import set_cpu_defaults
from .installed import look, uses
from .one_job import folder_notices, folder_problems
from .preflight import notices
from .rules import smallest_world_size
from .sizes import sizes_of


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a command line before it is started.

    Args:
        world_size: processes it was looked at for.
        device: ``cpu`` or ``cuda``.
        problems: why it would not run, one line each.
        notices: what computes it, and what may not be what was meant, one line each; empty beside
            problems.
        plan: what it will do, to be read; empty beside problems.
        numbers: the same as numbers, see planner/report.py.
    """

    world_size: int
    device: str
    problems: list[str]
    notices: list[str] = field(default_factory=list)
    plan: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)


def diagnose(
    flags: list[str],
    world_size: int | None,
    device: str,
    *,
    per_node: int | None = None,
    own_script: bool = False,
) -> Diagnosis:
    """Everything that is checked at start, without a process group or a model.

    Args:
        flags: of the job.
        world_size: its processes; None: as many as the parallel sizes need.
        device: ``cpu`` or ``cuda``, what it is to run on.
        per_node: processes of a node; None: what the launcher says, if there is one.
        own_script: do they go to a script under grove_megatron.run, not to grove_megatron.pretrain?
    """
    if problems := yaml_problems(flags):
        return Diagnosis(world_size or 1, device, problems)
    size = world_size
    elsewhere: list[str] = []
    try:
        if size is None:
            with _launched_as(1, per_node):
                size = smallest_world_size(_parsed(flags, device)[0])
        with _launched_as(size, per_node):
            args, problems = _parsed(flags, device)
            select_layer(args)
            problems += command_line_problems(args, size, device)
            problems += [] if own_script else gpt.entry_problems(args)
            problems += folder_problems(args)
            if not problems:
                problems = _megatrons(copy.deepcopy(args))
                if device == "cuda" and not cuda_is_here():
                    elsewhere = [
                        f"with what is installed here: {p}" for p in problems if _IS_INSTALLED(p)
                    ]
                    problems = [p for p in problems if not _IS_INSTALLED(p)]
    except _NotParsed as error:
        problems = error.problems
        size = size or 1
    if problems:
        return Diagnosis(size, device, problems)
    # As Megatron's validation does.
    args.num_layers = args.num_layers or args.encoder_num_layers
    args.seq_length = args.seq_length or args.encoder_seq_length
    noted = [*elsewhere, *notices(args), *folder_notices(args)]
    if device == "cpu" or cuda_is_here():
        noted += uses(args, look(), device)
    else:
        noted.append("there is no CUDA here; kernels and packages of the job are not known")
    try:
        sizes = sizes_of(args, size)
    except ValueError as error:
        return Diagnosis(size, device, [], noted, [f"no plan: {error}"])
    return Diagnosis(size, device, [], noted, plan_lines(sizes), plan(sizes))


@contextmanager
def _launched_as(world_size: int, per_node: int | None) -> Iterator[None]:
    """The environment of rank 0 of a job, which Megatron's parser reads."""
    given = dict(os.environ)
    os.environ |= {"RANK": "0", "WORLD_SIZE": str(world_size)}
    if per_node is not None:
        os.environ["LOCAL_WORLD_SIZE"] = str(per_node)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(given)


class _NotParsed(Exception):
    """The flags of a job cannot be known.

    Args:
        problems: why, one line each.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(*problems)
        self.problems = [*problems]


# What Megatron says of versions and packages holds for this machine, not for the job's.
_IS_INSTALLED = re.compile(
    r"transformer.?engine|\bTE\b|apex|install|version|import|cuda|nvidia|nvrx|triton", re.IGNORECASE
).search


def _parsed(flags: list[str], device: str) -> tuple[Namespace, list[str]]:
    """The namespace of a job and what --use-checkpoint-args found wrong, one line each."""
    from megatron.training.arguments import parse_args

    def stop(problems: Sequence[str]) -> NoReturn:
        raise _NotParsed(problems)

    def add(parser: Any) -> Any:
        parser = report_errors(add_grove_arguments(parser), stop)
        return set_cpu_defaults(parser) if device == "cpu" else parser

    given = sys.argv
    try:
        sys.argv = ["grove_megatron.pretrain", *flags]
        args: Namespace = parse_args(extra_args_provider=add)
    finally:
        sys.argv = given
    try:
        return args, restore_from_checkpoint(args)
    except ValueError as error:
        raise _NotParsed([str(error)]) from error


def _megatrons(args: Namespace) -> list[str]:
    """The first of Megatron's own complaints, if it has one; ``args`` are changed."""
    from megatron.training.arguments import validate_args

    try:
        validate_args(args, {} if args.tokenizer_type else {"tokenizer_type": "GPT2BPETokenizer"})
    except (Exception, SystemExit) as error:
        return [megatrons_refusal(error)]
    if args.vocab_size is None and args.padded_vocab_size is None:
        # The job takes it from its tokenizer, which may not be on this machine.
        args.padded_vocab_size = args.make_vocab_size_divisible_by * args.tensor_model_parallel_size
    return config_problems(args)
