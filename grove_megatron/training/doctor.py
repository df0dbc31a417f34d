"""``grove doctor``: would this command line run, and what would it do?"""

import contextlib
import copy
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from ..arguments import add_grove_arguments, yaml_problems
from ..checks.guarded import lines_of, problems_of
from ..checks.problem import Problem, Refusal
from ..config import is_checked
from ..planner.fit import fit
from ..planner.report import plan, plan_lines
from ..planner.sizes import padded_vocab_size
from ..run import script_problems
from ..unparsed import report_errors
from .checks import (
    as_launched,
    config_problems,
    every_problem,
    is_elsewhere,
    machine_problems,
    refusal,
    restore_from_checkpoint,
    script_notices,
)
from .cpu_arguments import set_cpu_defaults
from .elsewhere import everything_is_there
from .installed import look, uses
from .one_job import lock_notices, lock_problems
from .preflight import notices
from .rules import smallest_world_size
from .sizes import sizes_of
from .token_ids import rows_problem
from .vocabulary import Vocabulary, read_vocabulary


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a command line before it is started.

    Args:
        world_size: processes it was looked at for.
        device: ``cpu`` or ``cuda``.
        problems: why it would not run.
        notices: what computes it, and what may not be what was meant, one line each; empty beside
            problems.
        plan: what it will do, to be read; empty beside problems other than too little memory.
        numbers: the same as numbers, see planner/report.py.
    """

    world_size: int
    device: str
    problems: list[Problem]
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
    gpu_memory: float | None = None,
    script: list[str] | None = None,
) -> Diagnosis:
    """Everything that is checked at start, without a process group or a model.

    Args:
        flags: of the job.
        world_size: its processes; None: as many as the parallel sizes need.
        device: ``cpu`` or ``cuda``, what it is to run on.
        per_node: processes of a node; None: what the launcher says, if there is one.
        own_script: do they go to a script under grove_megatron.run, not to grove_megatron.pretrain?
        gpu_memory: GiB of a GPU that every rank has to fit into; None: whatever it needs.
        script: what stands behind grove_megatron.run; None: another program.
    """
    no_script = [] if script is None else script_problems(script)
    if problems := yaml_problems(flags):
        return Diagnosis(world_size or 1, device, problems)
    try:
        with _launched_as(world_size or 1, per_node):
            args, problems = _parsed(flags, device)
    except Refusal as error:
        return Diagnosis(world_size or 1, device, error.problems)
    return examine(
        args,
        world_size,
        device,
        problems=problems,
        not_there=no_script,
        per_node=per_node,
        own_script=own_script,
        gpu_memory=gpu_memory,
    )


def examine(
    args: Namespace,
    world_size: int | None,
    device: str,
    *,
    problems: Sequence[Problem] = (),
    not_there: Sequence[Problem] = (),
    per_node: int | None = None,
    own_script: bool = False,
    gpu_memory: float | None = None,
) -> Diagnosis:
    """The same of a command line that is parsed already.

    Args:
        args: Megatron's namespace with the Grove flags, which is changed.
        problems: of what could not be parsed.
        not_there: of files on this machine, beside those that the flags name.
    """
    size, elsewhere = world_size or _smallest_world_size(args), []
    with _launched_as(size, per_node):
        args.world_size = size
        problems = [*problems, *every_problem(args, size, device, own_script=own_script)]
        if is_elsewhere(device):
            here = [*not_there, *machine_problems(args, size, own_script=own_script)]
            elsewhere += [f"on this machine: {p}" for p in here]
        else:
            problems += [*not_there, *problems_of(lock_problems, args)]
        if not problems:
            problems = _megatrons(copy.deepcopy(args))
            if problems and is_elsewhere(device):
                elsewhere += [f"with what is installed here: {line}" for line in problems]
                with everything_is_there(copy.deepcopy(args)) as there:
                    problems = _megatrons(there)
    if problems:
        return Diagnosis(size, device, problems)
    vocabulary = read_vocabulary(args)
    # A run without Grove flags is Megatron's own, and a script may bring its own tokenizer.
    of_script = own_script and not (is_checked(args) and args.tokenizer_type)
    if not of_script and (problem := _rows_problem(args, vocabulary)):
        return Diagnosis(size, device, [problem])
    # As Megatron's validation does.
    args.num_layers = args.num_layers or args.encoder_num_layers
    args.seq_length = args.seq_length or args.encoder_seq_length
    noted = [*elsewhere, *lines_of(notices, args)]
    if not is_elsewhere(device):
        noted += lines_of(script_notices, args) if own_script else []
        noted += lines_of(lock_notices, args) + lines_of(uses, args, look(), device)
    else:
        noted.append("there is no CUDA here; kernels and packages of the job are not known")
    try:
        return _planned(Diagnosis(size, device, [], noted), args, vocabulary, gpu_memory)
    except Exception as error:
        return Diagnosis(size, device, [], noted, [f"no plan: {error}"])


def _rows_problem(args: Namespace, vocabulary: Vocabulary) -> Problem | None:
    """What the job finds with its tokenizer: tokens without a row in the embedding."""
    if vocabulary.ids is None:
        return None
    job = copy.copy(args)
    job.padded_vocab_size = padded_vocab_size(args, vocabulary.tokens)
    return rows_problem(job, vocabulary.ids)


def _planned(
    sound: Diagnosis, args: Namespace, vocabulary: Vocabulary, gpu_memory: float | None
) -> Diagnosis:
    """With what the job will do, and whether it fits into its GPUs."""
    tokens_of = "--padded-vocab-size" if args.padded_vocab_size else str(vocabulary)
    sizes = sizes_of(args, sound.world_size, vocabulary)
    lines, numbers = plan_lines(sizes, tokens_of, gpu_memory), plan(sizes)
    problems = []
    if gpu_memory is not None:
        found = fit(sizes, gpu_memory)
        numbers["fits_gpu_memory"] = found.fits
        problems = [] if found.fits else [Problem.of_text(found.problem)]
    return replace(sound, problems=problems, plan=lines, numbers=numbers)


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


def _parsed(flags: list[str], device: str) -> tuple[Namespace, list[Problem]]:
    """The namespace of a job, and what could not be parsed into it."""
    from megatron.training.arguments import parse_args

    sound: list[Namespace] = []

    def keep(args: Namespace) -> Sequence[Problem]:
        sound.append(args)
        return ()

    def stop(problems: Sequence[Problem]) -> NoReturn:
        raise Refusal(problems)

    def add(parser: Any) -> Any:
        parser = report_errors(add_grove_arguments(parser), stop, keep)
        return set_cpu_defaults(parser) if device == "cpu" else parser

    given = sys.argv
    try:
        sys.argv = ["grove_megatron.pretrain", *flags]
        return parse_args(extra_args_provider=add), []
    except Refusal as error:
        if not sound:
            raise
        as_launched(sound[0])
        return sound[0], error.problems
    except Exception as error:
        raise Refusal(refusal(error)) from error
    finally:
        sys.argv = given


def _smallest_world_size(args: Namespace) -> int:
    """The fewest processes that the flags need, those of a checkpoint among them."""
    args = copy.deepcopy(args)
    # What is wrong with it is said when it is read for good.
    with contextlib.suppress(Exception):
        restore_from_checkpoint(args)
    return smallest_world_size(args)


def _megatrons(args: Namespace) -> list[Problem]:
    """The first of Megatron's own complaints, if it has one; ``args`` are changed."""
    from megatron.training.arguments import validate_args

    try:
        validate_args(args, {} if args.tokenizer_type else {"tokenizer_type": "GPT2BPETokenizer"})
    except (Exception, SystemExit) as error:
        return refusal(error)
    if args.vocab_size is None and args.padded_vocab_size is None:
        # The job takes it from its tokenizer, which may not be on this machine.
        args.padded_vocab_size = args.make_vocab_size_divisible_by * args.tensor_model_parallel_size
    return config_problems(args)
