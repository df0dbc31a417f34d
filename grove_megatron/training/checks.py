"""Everything that is checked of a command line before a process group exists."""

import linecache
import traceback
from argparse import Namespace
from pathlib import Path

from megatron.training.argument_utils import (
    core_transformer_config_from_args,
    gpt_config_from_args,
    pretrain_cfg_container_from_args,
)
from megatron.training.checkpointing import load_args_from_checkpoint

from ..arguments import restore_grove_arguments
from ..config import GroveTransformerConfig, grove_problems, is_grove
from .builder import GroveGPTModelConfig
from .checkpoint_folder import checkpoint_folder_problem
from .late_rules import late_problems
from .preflight import preflight
from .rules import basic_problems, megatron_problems

_PACKAGE = Path(__file__).parents[1]


def command_line_problems(args: Namespace, world_size: int, device: str | None = None) -> list[str]:
    """All problems of a parsed, not yet validated command line, one line each.

    Args:
        args: Megatron's namespace with the Grove flags.
        world_size: processes of the job.
        device: ``cuda`` or ``cpu``, what it will run on; None: what this process runs on.
    """
    if not is_grove(args):
        return preflight(args, device)  # a run is Megatron's own then, with its own checks
    if problems := basic_problems(args):
        said = tuple(line.partition(")")[0] for line in problems)
        groves = grove_problems(args, num_experts=args.num_experts)
        return problems + [line for line in groves if not line.startswith(said)]
    rules = megatron_problems(args, world_size) + late_problems(args, world_size)
    return preflight(args, device) + rules


def restore_from_checkpoint(args: Namespace) -> list[str]:
    """Do what ``--use-checkpoint-args`` asks for, to ``args``; problems, one line each.

    Raises:
        ValueError: the flags cannot be had, so that no other check would make sense.
    """
    if not args.use_checkpoint_args:
        return []
    if args.load is None and args.pretrained_checkpoint is None:
        raise ValueError(
            "--use-checkpoint-args (True) needs --load (None); name the checkpoint, or give the "
            "flags"
        )
    if args.non_persistent_ckpt_type == "local":
        raise ValueError(
            "--use-checkpoint-args (True) excludes --non-persistent-ckpt-type (local), whose "
            "checkpoints cannot be read before training starts; give the flags"
        )
    problems = []
    for load_arg in ("pretrained_checkpoint", "load"):
        # Before Megatron reads it and ends the process without a word.
        if problem := checkpoint_folder_problem(args, load_arg):
            raise ValueError(problem)
        # The namespace alone comes back where there is no such checkpoint.
        loaded = load_args_from_checkpoint(args, load_arg=load_arg)
        if isinstance(loaded, tuple):
            problems += restore_grove_arguments(*loaded)
    return problems


def config_problems(args: Namespace) -> list[str]:
    """Build the configurations of a validated command line; why they cannot be, one line each.

    What Megatron has made of older names (--enable-cuda-graph is a --cuda-graph-impl) is looked at
    again here.
    """
    try:
        pretrain_cfg_container_from_args(args, model_config(args))
    except Exception as error:
        return [megatrons_refusal(error)]
    return []


def model_config(args: Namespace) -> GroveGPTModelConfig:
    """What the validated flags make of a GPT, Grove layers or not.

    Raises:
        AssertionError, ValueError and others: of Megatron's own checks and ours.
    """
    config: GroveGPTModelConfig = gpt_config_from_args(
        args,
        config=core_transformer_config_from_args(args, GroveTransformerConfig),
        model_config_cls=GroveGPTModelConfig,
    )
    return config


def megatrons_refusal(error: BaseException) -> str:
    """An exception of Megatron's own checks as a problem: what it says, or what it asserted.

    One of ours is a problem already.
    """
    frame = traceback.extract_tb(error.__traceback__)[-1]
    asserted = linecache.getline(frame.filename, frame.lineno or 0).strip()
    place = f"{'/'.join(frame.filename.split('/')[-3:])}:{frame.lineno}"
    said = " ".join(str(error).split()) or asserted
    if isinstance(error, SystemExit):
        said = f"Megatron ends the job here: {asserted}"
    if Path(frame.filename).is_relative_to(_PACKAGE):
        return said
    return f"{said} (Megatron, {place}); correct the flags it names"
