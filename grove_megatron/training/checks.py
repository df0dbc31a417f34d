"""Everything that is checked of a command line before a process group exists."""

import linecache
import os
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from megatron.training.argument_utils import (
    gpt_config_from_args,
    pretrain_cfg_container_from_args,
)
from megatron.training.checkpointing import load_args_from_checkpoint

from ..arguments import restore_grove_arguments, select_layer
from ..checks.guarded import problems_of
from ..checks.problem import Problem, Refusal, of_other_flags
from ..checks.rules import Check
from ..config import grove_problems, is_checked
from ..failure.job_store import have_met
from ..presets.flags import preset_problems
from ..runtime import cuda_is_here
from . import gpt
from .builder import GroveGPTModelConfig
from .checkpoint_folder import checkpoint_folder_problem, nothing_to_load, read_at_start
from .data_files import data_file_problems, prefixes
from .disk import disk_problems
from .late_rules import late_problems, needed
from .machine import folder_problems
from .of_ranks import problems_of_all
from .preflight import preflight
from .rules import basic_problems, megatron_problems
from .saved_arguments import saved_arguments
from .saving import saving_problems
from .sft_rules import conversation_file_problems, sft_problems
from .subsets import subset_problems
from .token_ids import vocabulary_problems
from .tokenizer_files import tokenizer_file_problems
from .transformer_config import transformer_config

_PACKAGE = Path(__file__).parents[1]


def as_launched(args: Namespace) -> None:
    """What Megatron's ``parse_args`` adds to the flags, where it does not get as far."""
    args._is_global_batch_size_explicitly_specified = args.global_batch_size is not None
    args.rank = int(os.environ.get("RANK", "0"))
    args.world_size = int(os.environ.get("WORLD_SIZE", "1"))


def is_elsewhere(device: str | None) -> bool:
    """Is a job for ``device`` one of another machine, of whose files nothing is known here?"""
    return device == "cuda" and not cuda_is_here()


def every_problem(
    args: Namespace, world_size: int, device: str | None = None, *, own_script: bool = False
) -> list[Problem]:
    """All that is wrong with a parsed command line and the files it names.

    ``args`` are filled in: with the flags of a checkpoint, and with what Grove flags select.

    Args:
        args, world_size, device: see :func:`command_line_problems`.
        own_script: do they go to a script under grove_megatron.run, not to grove_megatron.pretrain?
    """
    problems, why_not = _restored(args)
    if args.use_checkpoint_args and have_met():
        # What is looked at next every rank looks at, or the others would wait for this one.
        why_not = problems_of_all(args, why_not)
    if why_not:
        # Without the flags of the checkpoint no other check makes sense.
        return why_not
    select_layer(args)
    return problems + job_problems(args, world_size, device, own_script=own_script)


def _restored(args: Namespace) -> tuple[list[Problem], list[Problem]]:
    """Of the flags of a checkpoint: what is wrong with them, and why they cannot be had."""
    try:
        return restore_from_checkpoint(args), []
    except Refusal as error:
        return [], error.problems
    except ValueError as error:
        return [], [Problem.of_text(str(error))]
    except Exception as error:
        return [], refusal(error)


def job_problems(
    args: Namespace, world_size: int, device: str | None = None, *, own_script: bool = False
) -> list[Problem]:
    """The same of flags that a checkpoint has nothing to add to.

    Args:
        args, world_size, device, own_script: see :func:`every_problem`.
    """
    problems = command_line_problems(args, world_size, device)
    if own_script and is_checked(args):
        # One that gives none of these does not train: it generates, or converts.
        given = (args.train_iters, args.train_samples, args.lr)
        trains = args.skip_train or any(value is not None for value in given)
        problems += problems_of(partial(needed, trains=trains), args)
    elif not own_script:
        problems += problems_of(gpt.entry_problems, args)
    problems += problems_of(subset_problems, args, world_size)
    if is_checked(args) or not own_script:
        problems += problems_of(partial(sft_problems, own_script=own_script), args)
    if is_elsewhere(device):
        return problems
    return problems + machine_problems(args, world_size, own_script=own_script)


def machine_problems(
    args: Namespace, world_size: int, *, own_script: bool = False
) -> list[Problem]:
    """Files that are not there and folders that cannot be written on this machine.

    Without Grove flags a script's files are what it makes of them. One rank of a node looks:
    thousands would open every file and write to every folder at once. The others hear of it by
    :func:`.of_ranks.problems_of_all`.

    Args:
        args, world_size, own_script: see :func:`every_problem`.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0" or (own_script and not is_checked(args)):
        return []
    checks = [nothing_to_load, folder_problems, data_file_problems, tokenizer_file_problems]
    its_own = _of_the_script(args) if own_script else []
    if not own_script:
        checks.append(conversation_file_problems)
    found = [one for check in checks if check not in its_own for one in problems_of(check, args)]
    sized = not problems_of(basic_problems, args)
    return found + (problems_of(disk_problems, args, world_size) if sized else [])


def script_notices(args: Namespace) -> list[str]:
    """What is wrong with a script's files if it reads them as Megatron does, one line each.

    Args:
        args: of a script under grove_megatron.run.
    """
    found = [one for check in _of_the_script(args) for one in problems_of(check, args)]
    return [f"if the script reads it as Megatron does: {one}" for one in found if is_checked(args)]


def _of_the_script(args: Namespace) -> list[Callable[[Namespace], Iterable[Problem]]]:
    """Checks of files that a script may read in a way of its own."""
    # Of .bin and .idx files a flag names what they begin with, where nothing else is.
    own_data = any(os.path.exists(prefix) for prefix in prefixes(args))
    own_tokenizer = args.tokenizer_type is None
    checks = {data_file_problems: own_data, tokenizer_file_problems: own_tokenizer}
    return [check for check, own in checks.items() if own]


def command_line_problems(
    args: Namespace, world_size: int, device: str | None = None
) -> list[Problem]:
    """All problems of a parsed, not yet validated command line.

    Args:
        args: Megatron's namespace with the Grove flags.
        world_size: processes of the job.
        device: ``cuda`` or ``cpu``, what it will run on; None: what this process runs on.
    """
    contradicting = problems_of(preset_problems, args)
    return contradicting + of_other_flags(_other_problems(args, world_size, device), contradicting)


def _other_problems(args: Namespace, world_size: int, device: str | None) -> list[Problem]:
    if not is_checked(args):
        # A run is Megatron's own then, with its own checks.
        return problems_of(preflight, args, device)
    if problems := problems_of(basic_problems, args):
        groves = problems_of(partial(grove_problems, num_experts=args.num_experts), args)
        return problems + of_other_flags(groves, problems)
    return [
        *problems_of(preflight, args, device),
        *problems_of(megatron_problems, args, world_size),
        *problems_of(late_problems, args, world_size),
        *problems_of(vocabulary_problems, args),
        *problems_of(saving_problems, args),
    ]


def restore_from_checkpoint(args: Namespace) -> list[Problem]:
    """Do what ``--use-checkpoint-args`` asks for, to ``args``; what is wrong with it.

    Raises:
        ValueError: the flags cannot be had, so that no other check would make sense.
    """
    check = Check(args)
    if not args.use_checkpoint_args:
        return []
    problems: list[Problem] = []
    if args.pretrained_checkpoint is None:
        fix = "name the checkpoint, or give the flags"
        problems += check.needs("use_checkpoint_args", "load", fix)
    if args.non_persistent_ckpt_type == "local":
        both = ("use_checkpoint_args", "non_persistent_ckpt_type")
        why = ", whose checkpoints cannot be read before training starts"
        problems += check.excludes(*both, "give the flags", why=why)
    if problems:
        raise Refusal(problems)
    for load_arg in read_at_start(args):
        # Before Megatron reads it and ends the process without a word.
        if problem := checkpoint_folder_problem(args, load_arg):
            raise Refusal([problem])
        # Megatron runs what is in it.
        saved_arguments(args, load_arg)
        # The namespace alone comes back where there is no such checkpoint.
        loaded = load_args_from_checkpoint(args, load_arg=load_arg)
        if isinstance(loaded, tuple):
            problems += restore_grove_arguments(*loaded)
    return problems


def config_problems(args: Namespace) -> list[Problem]:
    """Build the configurations of a validated command line; why they cannot be.

    What Megatron has made of older names (--enable-cuda-graph is a --cuda-graph-impl) is looked at
    again here.
    """
    try:
        pretrain_cfg_container_from_args(args, model_config(args))
    except Exception as error:
        return refusal(error)
    return []


def model_config(args: Namespace) -> GroveGPTModelConfig:
    """What the validated flags make of a GPT, Grove layers or not.

    Raises:
        AssertionError, ValueError and others: of Megatron's own checks and ours.
    """
    config: GroveGPTModelConfig = gpt_config_from_args(
        args,
        config=transformer_config(args),
        model_config_cls=GroveGPTModelConfig,
    )
    return config


def refusal(error: BaseException) -> list[Problem]:
    """An exception of the checks as problems: ours, or what Megatron says or asserted."""
    if isinstance(error, Refusal):
        return error.problems
    frame = traceback.extract_tb(error.__traceback__)[-1]
    asserted = linecache.getline(frame.filename, frame.lineno or 0).strip()
    place = f"{'/'.join(frame.filename.split('/')[-3:])}:{frame.lineno}"
    said = " ".join(str(error).split()) or asserted
    if isinstance(error, SystemExit):
        said = f"Megatron ends the job here: {asserted}"
    if not Path(frame.filename).is_relative_to(_PACKAGE):
        said = f"{said} (Megatron, {place}); correct the flags it names"
    return [Problem.of_text(said)]
