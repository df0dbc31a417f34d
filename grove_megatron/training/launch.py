"""From the command line to Megatron's training loop, through Megatron's own hooks only."""

import sys
from argparse import ArgumentParser, Namespace
from typing import Any

from megatron.core.enums import ModelType
from megatron.training import pretrain as megatron_pretrain
from megatron.training.argument_utils import (
    core_transformer_config_from_args,
    gpt_config_from_args,
    pretrain_cfg_container_from_args,
)
from megatron.training.arguments import parse_args, validate_args
from megatron.training.checkpointing import load_args_from_checkpoint
from megatron.training.global_vars import set_global_variables

from ..arguments import (
    add_grove_arguments,
    restore_grove_arguments,
    select_layer,
    yaml_problems,
)
from ..config import GroveTransformerConfig
from ..runtime import cpu_is_active
from . import gpt
from .builder import GroveGPTModelConfig
from .checkpoint_folder import checkpoint_folder_problem
from .cpu_arguments import set_cpu_defaults
from .preflight import announce, preflight
from .refuse import refuse
from .summary import print_summary


def pretrain() -> None:
    """Parse, check, build and train; what ``pretrain_gpt.py`` does in Megatron's repository."""
    args = parse_arguments()
    model_config = gpt_config_from_args(
        args,
        config=core_transformer_config_from_args(args, GroveTransformerConfig),
        model_config_cls=GroveGPTModelConfig,
    )
    models: list[Any] = []

    def keep(built: list[Any]) -> list[Any]:
        models.extend(built)
        return built

    model_config.post_wrap_hooks.append(keep)
    megatron_pretrain(
        pretrain_cfg_container_from_args(args, model_config),
        gpt.datasets,
        ModelType.encoder_or_decoder,
        gpt.forward_step,
        get_embedding_ranks=gpt.embedding_ranks,
    )
    print_summary(models, model_config.transformer)


def parse_arguments() -> Namespace:
    """Megatron's ``parse_and_validate_args`` with our flags, and our checks before its own."""
    if problems := yaml_problems(sys.argv[1:]):
        refuse(problems)
    args = parse_args(extra_args_provider=_add_arguments)
    if args.yaml_cfg is not None:
        refuse(
            [
                f"--yaml-cfg ({args.yaml_cfg}) is not read by grove_megatron.pretrain; use flags, "
                "or grove_megatron.run with Megatron's own script"
            ]
        )
    problems = _from_checkpoint(args) if args.use_checkpoint_args else []
    select_layer(args)
    problems += preflight(args) + gpt.entry_problems(args)
    if problems:
        refuse(problems)
    announce(args)
    # The default of Megatron's own script; validate_args warns of a default nobody needs.
    defaults = {} if args.tokenizer_type else {"tokenizer_type": "GPT2BPETokenizer"}
    validate_args(args, defaults)
    set_global_variables(args)
    return args


def _from_checkpoint(args: Namespace) -> list[str]:
    if args.load is None and args.pretrained_checkpoint is None:
        return ["--use-checkpoint-args (True) needs --load (None); name the checkpoint"]
    if args.non_persistent_ckpt_type == "local":
        return [
            "--use-checkpoint-args (True) excludes --non-persistent-ckpt-type (local), whose "
            "checkpoints cannot be read before training starts; give the flags"
        ]
    problems = []
    for load_arg in ("pretrained_checkpoint", "load"):
        # Before Megatron reads it and ends the process without a word.
        if problem := checkpoint_folder_problem(args, load_arg):
            refuse([problem])
        # The namespace alone comes back where there is no such checkpoint.
        loaded = load_args_from_checkpoint(args, load_arg=load_arg)
        if isinstance(loaded, tuple):
            problems += restore_grove_arguments(*loaded)
    return problems


def _add_arguments(parser: ArgumentParser) -> ArgumentParser:
    parser = add_grove_arguments(parser)
    return set_cpu_defaults(parser) if cpu_is_active() else parser
