"""From the command line to Megatron's training loop, through Megatron's own hooks only."""

import sys
import traceback
from argparse import ArgumentParser, Namespace
from typing import Any

from megatron.core.enums import ModelType
from megatron.training import get_tokenizer
from megatron.training import pretrain as megatron_pretrain
from megatron.training.argument_utils import pretrain_cfg_container_from_args
from megatron.training.arguments import parse_args, validate_args
from megatron.training.global_vars import set_global_variables
from megatron.training.training import train

from ..arguments import add_grove_arguments, yaml_problems
from ..checks.problem import Problem, of_other_flags
from ..failure.job_store import group_store
from ..failure.watch import begin
from ..runtime import cpu_is_active
from ..unparsed import report_errors
from . import gpt
from .checks import as_launched, every_problem, model_config, refusal
from .cpu_arguments import set_cpu_defaults
from .late_rules import timeout_problems
from .of_ranks import problems_of_all
from .one_job import claim
from .preflight import announce
from .refuse import refuse
from .reporting import REPORTING, announce_flops
from .same_flags import refuse_differences
from .sft_rules import sft_tokenizer_problems
from .summary import print_summary
from .token_ids import tokenizer_problem
from .transformer_config import LATENT


def pretrain() -> None:
    """Parse, check, build and train; what ``pretrain_gpt.py`` does in Megatron's repository."""
    with LATENT.applied(), REPORTING.applied():
        _pretrain()


def _pretrain() -> None:
    args = parse_arguments(training=True)
    try:
        config = model_config(args)
        container = pretrain_cfg_container_from_args(args, config)
    except Exception as error:
        refuse(refusal(error))
    models: list[Any] = []

    def keep(built: list[Any]) -> list[Any]:
        models.extend(built)
        return built

    config.post_wrap_hooks.append(keep)
    try:
        megatron_pretrain(
            container,
            gpt.datasets,
            ModelType.encoder_or_decoder,
            gpt.forward_step,
            get_embedding_ranks=gpt.embedding_ranks,
            store=group_store(args),
        )
    except SystemExit as leaving:
        if _all_leave(leaving):
            print_summary(models, config.transformer)
        raise
    print_summary(models, config.transformer)


def _all_leave(leaving: SystemExit) -> bool:
    """Does Megatron's training loop end the process, after a barrier of all ranks?

    So it does by --exit-interval, --exit-duration-in-mins and --exit-signal-handler.
    """
    last = traceback.extract_tb(leaving.__traceback__)[-1]
    return last.name == train.__name__ and last.filename == train.__code__.co_filename


def parse_arguments(*, training: bool = False) -> Namespace:
    """Megatron's ``parse_and_validate_args`` with our flags, and our checks before its own.

    Args:
        training: will the model be trained? If so, what a training should know is said, and the
            folders that it writes into are claimed.
    """
    if problems := yaml_problems(sys.argv[1:]):
        refuse(problems)
    try:
        args = parse_args(extra_args_provider=_add_arguments)
    except Exception as error:
        refuse(refusal(error))
    if problems := [*timeout_problems(args)]:
        # By it, ranks wait for each other below.
        refuse(problems + of_other_flags(every_problem(args, args.world_size), problems))
    begin(args)
    refuse_differences(args)
    problems = problems_of_all(args, every_problem(args, args.world_size))
    if training:
        problems += claim(args, problems)
    if problems:
        refuse(problems)
    if training:
        announce(args)
        announce_flops(args)
    # The default of Megatron's own script; validate_args warns of a default nobody needs.
    defaults = {} if args.tokenizer_type else {"tokenizer_type": "GPT2BPETokenizer"}
    try:
        validate_args(args, defaults)
    except (Exception, SystemExit) as error:
        refuse(refusal(error))
    begin_megatron(args)
    return args


def begin_megatron(args: Namespace) -> None:
    """Megatron's global state, with its tokenizer and its writers; refuse what they cannot do."""
    try:
        set_global_variables(args)
    except Exception as error:
        refuse(refusal(error))
    if problem := tokenizer_problem(args, get_tokenizer()):
        refuse([problem])
    if problems := [*sft_tokenizer_problems(args, get_tokenizer())]:
        refuse(problems)


def _other_problems(args: Namespace) -> list[Problem]:
    """Of flags of which some could not be parsed."""
    as_launched(args)
    return every_problem(args, args.world_size)


def _add_arguments(parser: ArgumentParser) -> ArgumentParser:
    parser = report_errors(add_grove_arguments(parser), refuse, _other_problems)
    return set_cpu_defaults(parser) if cpu_is_active() else parser
