"""``--grove-*`` flags, made from the fields of :class:`GroveTransformerConfig`."""

import os
from argparse import ArgumentParser, Namespace
from dataclasses import fields

from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training.argument_utils import ArgumentGroupFactory

from .config import GroveTransformerConfig, grove_defaults, is_grove

LAYER_SPEC = ("grove_megatron.layer_spec", "grove_layer_spec")


def add_grove_arguments(parser: ArgumentParser) -> ArgumentParser:
    """Add the Grove flags to Megatron's parser; an ``extra_args_provider``."""
    inherited = [f.name for f in fields(TransformerConfig)]
    factory = ArgumentGroupFactory(GroveTransformerConfig, exclude=inherited)
    factory.build_group(parser, title="grove")
    _repair_help(parser)
    return parser


def _repair_help(parser: ArgumentParser) -> None:
    """Make ``--help`` work: texts of Megatron 0.19 hold bare percent signs, on which it dies."""
    for action in parser._actions:
        if not action.help:
            continue
        try:
            parser._get_formatter()._expand_help(action)
        except (ValueError, TypeError, KeyError):
            action.help = action.help.replace("%", "%%")


def select_layer(args: Namespace) -> None:
    """Asking for groups is asking for the Grove layer: fill in ``--spec`` where it was left out."""
    if is_grove(args) and args.spec is None:
        args.spec = list(LAYER_SPEC)


def contradictions(args: Namespace, checkpoint_args: Namespace) -> list[str]:
    """Grove settings of a run that differ from those its checkpoint was made with, a line each.

    They describe the weights: loaded with others, a checkpoint would silently lose its adjugates
    or become another model.
    """
    problems = []
    for name, default in grove_defaults().items():
        if name == "grove_allow_scale_above_bound":
            continue
        # A checkpoint that knows nothing of Grove is one of a plain model.
        given, saved = getattr(args, name), getattr(checkpoint_args, name, default)
        if (given or None) != (saved or None):
            flag = f"--{name.replace('_', '-')}"
            problems.append(
                f"{flag} ({given}) differs from {flag} of the checkpoint ({saved}); give the "
                "checkpoint's value, or --use-checkpoint-args"
            )
    return problems


def yaml_problems(argv: list[str]) -> list[str]:
    """``--yaml-cfg`` replaces the whole command line, our flags and all our checks included."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--yaml-cfg")
    options, rest = parser.parse_known_args(argv)
    grove = [flag for flag in rest if flag.startswith("--grove-")]
    if options.yaml_cfg is None or not grove:
        return []
    return [
        f"--yaml-cfg ({options.yaml_cfg}) replaces the command line and with it {grove[0]} "
        f"({len(grove)} Grove flags given); use flags alone"
    ]


def restore_grove_arguments(args: Namespace, checkpoint_args: Namespace) -> list[str]:
    """Take the Grove settings from a checkpoint, as ``--use-checkpoint-args`` does for Megatron's.

    They describe the weights. A flag that was given (differs from its default) and contradicts
    the checkpoint is not overruled silently.

    Returns:
        One line per contradiction.
    """
    problems = []
    for name, default in grove_defaults().items():
        given, saved = getattr(args, name), getattr(checkpoint_args, name, default)
        if given not in (saved, default):
            flag = f"--{name.replace('_', '-')}"
            problems.append(
                f"{flag} ({given}) differs from {flag} of the checkpoint ({saved}); remove one of "
                f"{flag} and --use-checkpoint-args"
            )
        elif given != saved and os.environ.get("RANK", "0") == "0":
            print(f"grove_megatron: {name} ({saved}) is taken from the checkpoint")
        setattr(args, name, saved)
    return problems
