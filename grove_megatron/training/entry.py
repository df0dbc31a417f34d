"""The ``entry`` patches: what ``grove_megatron.run`` rebinds for a foreign entry script.

Such a script parses Megatron's flags, reads its batches and builds its configuration itself; these
names are where the plugin's flags, checks, configuration class and builder come in. ``pretrain``
needs none of them: it calls Megatron's hooks.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

from megatron.training import get_args, get_tokenizer
from torch.utils.data import DataLoader

from ..arguments import (
    add_grove_arguments,
    restore_grove_arguments,
    select_layer,
    yaml_problems,
)
from ..checks.problem import Problem, of_other_flags
from ..config import GroveTransformerConfig, is_checked
from ..failure.job_store import group_store
from ..failure.watch import begin
from ..runtime import cpu_is_active
from ..runtime.fingerprints import megatron_patch
from ..runtime.registry import PatchSet
from ..unparsed import report_errors
from .builder import GroveGPTModelConfig
from .checkpoint_folder import checkpoint_folder_problem
from .checks import as_launched, every_problem, job_problems, script_notices
from .cpu_arguments import set_cpu_defaults
from .late_rules import timeout_problems
from .of_ranks import problems_of_all
from .one_job import claim
from .preflight import announce
from .refuse import refuse
from .reporting import announce_flops
from .same_flags import refuse_differences
from .saved_arguments import saved_arguments
from .token_ids import CheckedLoader, tokenizer_problem, vocabulary_size


def _add_arguments(original: Callable[..., ArgumentParser]) -> Callable[..., ArgumentParser]:
    def add_megatron_arguments(parser: ArgumentParser) -> ArgumentParser:
        if problems := yaml_problems(sys.argv[1:], own_script=True):
            refuse(problems)
        parser = report_errors(add_grove_arguments(original(parser)), refuse, _other_problems)
        return set_cpu_defaults(parser) if cpu_is_active() else parser

    return add_megatron_arguments


def _other_problems(args: Namespace) -> list[Problem]:
    as_launched(args)
    return every_problem(args, args.world_size, own_script=True) if is_checked(args) else []


def _validate_args(original: Callable[..., Any]) -> Callable[..., Any]:
    def validate_args(args: Namespace, defaults: dict[str, Any] | None = None) -> Any:
        if problems := [*timeout_problems(args)]:
            # By it, ranks wait for each other below.
            select_layer(args)
            others = job_problems(args, args.world_size, own_script=True)
            refuse(problems + of_other_flags(others, problems))
        begin(args)
        refuse_differences(args)
        select_layer(args)
        problems = job_problems(args, args.world_size, own_script=True)
        problems = problems_of_all(args, problems)
        if problems := problems + claim(args, problems):
            refuse(problems)
        announce(args, script_notices)
        announce_flops(args)
        return original(args, defaults if defaults is not None else {})

    return validate_args


def _data_loader(original: Callable[..., Any]) -> Callable[..., Any]:
    def build_pretraining_data_loader(dataset: Any, consumed_samples: Any) -> Any:
        loader, args = original(dataset, consumed_samples), get_args()
        # A loader that the script brings (--dataloader-type external) gives what it likes.
        if not (is_checked(args) and isinstance(loader, DataLoader)):
            return loader
        return CheckedLoader(loader, vocabulary_size(get_tokenizer()), args)

    return build_pretraining_data_loader


def _load_args(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_args_from_checkpoint(
        args: Namespace, load_arg: str = "load", *rest: Any, **named: Any
    ) -> Any:
        if problem := checkpoint_folder_problem(args, load_arg):
            refuse([problem])
        try:
            saved_arguments(args, load_arg)
        except ValueError as error:
            refuse([Problem.of_text(str(error))])
        loaded = original(args, load_arg, *rest, **named)
        if isinstance(loaded, tuple) and (problems := restore_grove_arguments(*loaded)):
            refuse(problems)
        return loaded

    return load_args_from_checkpoint


def _initialize_distributed(original: Callable[..., Any]) -> Callable[..., Any]:
    def initialize_distributed(
        get_embedding_ranks: Any,
        get_position_embedding_ranks: Any,
        store: Any,
        *rest: Any,
        **named: Any,
    ) -> Any:
        args = get_args()
        # By now there is a tokenizer, and not yet a model.
        if is_checked(args) and (problem := tokenizer_problem(args, get_tokenizer())):
            refuse([problem])
        if store is None:
            store = group_store(args)
        return original(get_embedding_ranks, get_position_embedding_ranks, store, *rest, **named)

    return initialize_distributed


ENTRY = PatchSet(
    "entry",
    "what grove_megatron.run rebinds for a foreign entry script (CUDA machines too)",
    [
        megatron_patch(
            name="flags",
            target="megatron.training.arguments:add_megatron_arguments",
            reason="the script's parser is strict; adds the --grove-* flags and CPU defaults",
            make=_add_arguments,
        ),
        megatron_patch(
            name="checks",
            target="megatron.training.arguments:validate_args",
            reason="refuses what cannot work before Megatron asserts on the first of it",
            make=_validate_args,
        ),
        megatron_patch(
            name="checkpoint-flags",
            target="megatron.training.checkpointing:load_args_from_checkpoint",
            reason="--use-checkpoint-args restores a fixed list of flags without ours",
            make=_load_args,
        ),
        megatron_patch(
            name="store-of-attempt",
            target="megatron.training.initialize:_initialize_distributed",
            reason="the script passes pretrain() no store; torchrun keeps its own over restarts; "
            "and a tokenizer with more ids than the embedding has rows is refused before a model",
            make=_initialize_distributed,
        ),
        megatron_patch(
            name="token-ids",
            target="megatron.training.training:build_pretraining_data_loader",
            reason="the script takes its batches from this loader and gives them to a GPU; ids "
            "outside of the vocabulary have to be seen before, where nobody waits for one",
            make=_data_loader,
        ),
        megatron_patch(
            name="config-class",
            target="megatron.training.argument_utils:TransformerConfig",
            reason="the script builds its config from flags without naming a class",
            make=lambda original: GroveTransformerConfig,
        ),
        megatron_patch(
            name="builder",
            target="megatron.training.models.gpt:GPTModelConfig.builder",
            reason="the MTP block ignores --spec, and a spec that does not import is ignored",
            make=lambda original: GroveGPTModelConfig.builder,
        ),
    ],
)
