"""``--grove-*`` flags, made from the fields of :class:`GroveTransformerConfig` and
:class:`JobSettings`."""

import contextlib
import os
from argparse import ArgumentParser, Namespace
from dataclasses import Field, dataclass, fields
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training.argument_utils import ArgumentGroupFactory

from .checks.flags import flag_of
from .checks.problem import Problem
from .checks.rules import Check
from .config import (
    IMPORTED,
    NOT_OF_THE_WEIGHTS,
    PLACED,
    GroveTransformerConfig,
    JobSettings,
    expert_tensor_parallel_size,
    has_adjugates,
    has_grove_layers,
    layer_defaults,
    unknown_settings,
)
from .model.settings import choose_kernel
from .parts import registry
from .placing.file import read
from .presets.flags import read_presets
from .presets.table import PRESETS

LAYER_SPEC = ("grove_megatron.layer_spec", "grove_layer_spec")


def add_grove_arguments(parser: ArgumentParser) -> ArgumentParser:
    """Add the Grove flags to Megatron's parser; an ``extra_args_provider``."""
    inherited = [*(f.name for f in fields(TransformerConfig)), *registry.settings_names()]
    factory = ArgumentGroupFactory(GroveTransformerConfig, exclude=inherited)
    factory.build_group(parser, title="grove")
    for kind in registry.settings_classes():
        _WithChoices(kind).build_group(parser, title="grove router")
    _WithChoices(JobSettings).build_group(parser, title="grove job")
    read_presets(parser)
    _repair_help(parser)
    return parser


class _WithChoices(ArgumentGroupFactory):
    """Flags whose choices are what there is: the parts of a slot that one fills, the presets."""

    def _build_argparse_kwargs_from_field(self, attribute: Field[Any]) -> dict[str, Any]:
        built: dict[str, Any] = super()._build_argparse_kwargs_from_field(attribute)
        if slot := attribute.metadata.get("slot"):
            listed = "; ".join(f"{part.name}: {part.help}" for part in registry.of_slot(slot))
            built |= {"choices": registry.choices(slot), "help": f"{built['help']} {listed}."}
        if attribute.name == "grove_preset":
            built["choices"] = tuple(PRESETS)
        return built


def _repair_help(parser: ArgumentParser) -> None:
    """Make ``--help`` work: texts of Megatron 0.19 hold bare percent signs, on which it dies."""
    original = parser.format_help

    def format_help() -> str:
        for action in parser._actions:
            if not action.help:
                continue
            try:
                parser._get_formatter()._expand_help(action)
            except (ValueError, TypeError, KeyError):
                action.help = action.help.replace("%", "%%")
        return original()

    parser.format_help = format_help  # type: ignore[method-assign]


def select_layer(args: Namespace) -> None:
    """Asking for groups or our dispatch is asking for our layer: fill in what was left out."""
    if not has_grove_layers(args):
        return
    if args.spec is None:
        args.spec = list(LAYER_SPEC)
    choose_kernel(args)
    if args.grove_placement is not None:
        # A file that is none has been, or will be, refused.
        with contextlib.suppress(ValueError):
            setattr(args, PLACED, read(args.grove_placement).digest)


@dataclass(frozen=True)
class _Forgettable:
    """A setting of Megatron's that changes the model and not the shape of a weight.

    A run that leaves the flag out would load the checkpoint and compute something else.

    Args:
        name: the attribute.
        default: Megatron's.
        restored: whether ``--use-checkpoint-args`` restores it in Megatron 0.19.
    """

    name: str
    default: object
    restored: bool


_FORGETTABLE = (
    _Forgettable("layernorm_epsilon", 1e-5, False),
    _Forgettable("qk_layernorm", False, False),
    _Forgettable("rotary_base", 10000, True),
    _Forgettable("rotary_percent", 1.0, True),
    # Of --multi-latent-attention.
    _Forgettable("rope_type", None, False),
    _Forgettable("rotary_scaling_factor", 1.0, False),
    _Forgettable("mscale", 1.0, False),
    _Forgettable("mscale_all_dim", 0.0, False),
    _Forgettable("moe_router_topk", 2, True),
    _Forgettable("moe_router_pre_softmax", False, True),
)


def _forgotten(args: Namespace, checkpoint_args: Namespace) -> list[tuple[_Forgettable, object]]:
    """Settings at their default that a Grove checkpoint or an import has otherwise, and its values.

    A value other than the default was given, so it is meant: a longer context by another
    ``--rotary-base``.
    """
    if not (has_adjugates(checkpoint_args) or getattr(checkpoint_args, IMPORTED, False)):
        return []
    return [
        (setting, saved)
        for setting in _FORGETTABLE
        if getattr(args, setting.name, setting.default) == setting.default
        and (saved := getattr(checkpoint_args, setting.name, setting.default)) != setting.default
    ]


def contradictions(args: Namespace, checkpoint_args: Namespace) -> list[Problem]:
    """Settings of a run that differ from those its Grove checkpoint was made with.

    They describe the weights: loaded with others, a checkpoint would silently lose its adjugates
    or become another model. Those of Megatron count where they were left out.
    """
    fix = "give the checkpoint's value, or --use-checkpoint-args"
    problems = [
        _differs(setting.name, f"{setting.default}, the default", saved, f"; {fix}")
        for setting, saved in _forgotten(args, checkpoint_args)
    ]
    for name, default in layer_defaults().items():
        if name in NOT_OF_THE_WEIGHTS:
            continue
        # A checkpoint that knows nothing of Grove is one of a plain model.
        given, saved = getattr(args, name), getattr(checkpoint_args, name, default)
        if (given or None) != (saved or None):
            problems.append(_differs(name, given, saved, f"; {fix}"))
    return problems


def unknown_problems(checkpoint_args: Namespace) -> list[Problem]:
    """Settings that a later version has, or a part that is not installed here."""
    text = (
        "is a setting of the checkpoint that this grove_megatron does not know; load it with the "
        "version that wrote it, or with the file of its part in grove_megatron/parts"
    )
    unknown = unknown_settings(checkpoint_args)
    return [Problem(flag_of(name), value, text) for name, value in unknown.items()]


def _differs(name: str, given: object, saved: object, fix: str) -> Problem:
    flag = flag_of(name)
    return Problem(flag, given, f"differs from {flag} of the checkpoint ({saved}){fix}")


def placement_problems(args: Namespace, checkpoint_args: Namespace) -> list[Problem]:
    """Checkpoints that have what every rank had, and not which experts they were."""
    saved_format = getattr(checkpoint_args, "ckpt_format", "torch_dist")
    if saved_format == "torch_dist":
        return []
    fix = (
        f", whose --ckpt-format ({saved_format}) does not say which experts a rank had; use the "
        "same file, or save once with it and --ckpt-format torch_dist"
    )
    return _other_placement(args, checkpoint_args, fix)


def _other_placement(args: Namespace, checkpoint_args: Namespace, fix: str) -> list[Problem]:
    here, there = getattr(args, PLACED, None), getattr(checkpoint_args, PLACED, None)
    if here == there:
        return []
    given = getattr(args, "grove_placement", None)
    saved = getattr(checkpoint_args, "grove_placement", None) if there else None
    if given == saved:
        # A file that says something else by now.
        given, saved = f"{given}, of digest {here}", f"of digest {there}"
    return [_differs("grove_placement", given, saved, fix)]


def optimizer_layout_problems(args: Namespace, checkpoint_args: Namespace) -> list[Problem]:
    """Distributed optimizer states that would be loaded into the wrong parameters.

    Megatron's default format of these states keeps them in the order of the parameters in memory
    and names none of them. Another layout ends in an error about buckets or in none at all: the
    same number of elements in another order gets the moments of other parameters.
    """
    check = Check(args)
    resumes = not (args.finetune or args.no_load_optim)
    imported = getattr(checkpoint_args, IMPORTED, False)
    saved = not (imported or getattr(checkpoint_args, "no_save_optim", False))
    distributed = getattr(checkpoint_args, "use_distributed_optimizer", False)
    ours = has_grove_layers(args) or has_grove_layers(checkpoint_args)
    if not (ours and resumes and saved):
        return []
    chosen, before = args.grove_train_only, getattr(checkpoint_args, "grove_train_only", None)
    if chosen != before:
        fix = (
            ", whose optimizer state is of other weights; use the same, or begin anew with "
            "--finetune or --no-load-optim"
        )
        return [_differs("grove_train_only", chosen, before, fix)]
    if args.use_distributed_optimizer != distributed:
        fix = ", whose optimizer state it cannot read; use the same, or give --no-load-optim"
        given = args.use_distributed_optimizer
        return [_differs("use_distributed_optimizer", given, distributed, fix)]
    if not distributed:
        return []
    if getattr(checkpoint_args, "dist_ckpt_optim_fully_reshardable", False):
        return []
    fits_no_other = (
        ", whose distributed optimizer state fits no other; use the same, or save once with "
        "--dist-ckpt-optim-fully-reshardable at the old layout, or give --no-load-optim"
    )
    here, there = _parallel_sizes(args), _parallel_sizes(checkpoint_args)
    problems = [
        _differs(name, here[name], there[name], fits_no_other)
        for name in here
        if here[name] != there[name]
    ]
    problems += _other_placement(args, checkpoint_args, fits_no_other)
    modules, saved_modules = _expert_modules(args), _expert_modules(checkpoint_args)
    if modules != saved_modules:
        problems.append(
            check.problem(
                f"{{grove_kernel}} makes expert modules ({modules}) that are not those of the "
                f"checkpoint ({saved_modules}){fits_no_other}"
            )
        )
    return problems


def optimizer_format_notice(args: Namespace) -> str | None:
    """What a run that saves should know of its checkpoints, as one line, or None."""
    saves = args.save is not None and not args.no_save_optim
    if not (has_grove_layers(args) and saves and args.use_distributed_optimizer):
        return None
    if args.dist_ckpt_optim_fully_reshardable:
        return None
    sizes = ", ".join(f"{flag_of(name)} {size}" for name, size in _parallel_sizes(args).items())
    placed = f", --grove-placement {args.grove_placement}" if getattr(args, PLACED, None) else ""
    return (
        f"the optimizer state this run saves loads at any data-parallel size, but only with "
        f"{sizes}{placed} and expert modules {_expert_modules(args)}; for any layout add "
        "--dist-ckpt-optim-fully-reshardable"
    )


def _parallel_sizes(args: Namespace) -> dict[str, int]:
    """The sizes that decide which parameters a rank holds.

    Args:
        args: of a command line, validated or not, or of a checkpoint.
    """
    tensor = args.tensor_model_parallel_size
    return {
        "tensor_model_parallel_size": tensor,
        "pipeline_model_parallel_size": args.pipeline_model_parallel_size,
        "expert_model_parallel_size": args.expert_model_parallel_size,
        "expert_tensor_parallel_size": expert_tensor_parallel_size(args),
    }


def _expert_modules(args: Namespace) -> str:
    """Which modules hold the experts, as far as it decides the order of parameters in memory."""
    # Without the setting it is Megatron's own checkpoint, or older than the choice.
    grouped = has_grove_layers(args) and getattr(args, "grove_kernel", "megatron") != "megatron"
    if args.transformer_impl == "local":
        return "GroupedExperts" if grouped else "SequentialMLP"
    return "TEGroupedMLP" if args.moe_grouped_gemm else "SequentialMLP of TransformerEngine"


def yaml_problems(argv: list[str], *, own_script: bool = False) -> list[Problem]:
    """``--yaml-cfg`` replaces the whole command line, our flags and all our checks included.

    Args:
        own_script: does a script under grove_megatron.run read it?
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--yaml-cfg", nargs="?")
    options, rest = parser.parse_known_args(argv)
    grove = [flag for flag in rest if flag.startswith("--grove-")]
    if options.yaml_cfg is None or (own_script and not grove):
        return []
    what, fix = "is not read by grove_megatron.pretrain or grove doctor", "use flags, or "
    fix += "grove_megatron.run with Megatron's own script"
    if grove:
        what = f"replaces the command line and with it {grove[0]} ({len(grove)} Grove flags given)"
        fix = "use flags alone"
    return [Problem("--yaml-cfg", options.yaml_cfg, f"{what}; {fix}")]


def restore_grove_arguments(args: Namespace, checkpoint_args: Namespace) -> list[Problem]:
    """Take the Grove settings from a checkpoint, as ``--use-checkpoint-args`` does for Megatron's.

    They describe the weights. A flag that was given (differs from its default) and contradicts
    the checkpoint is not overruled silently.

    Returns:
        The contradictions.
    """
    problems = []
    for name, default in layer_defaults().items():
        if name in NOT_OF_THE_WEIGHTS:
            continue
        given, saved = getattr(args, name), getattr(checkpoint_args, name, default)
        if given not in (saved, default):
            fix = f"; remove one of {flag_of(name)} and --use-checkpoint-args"
            problems.append(_differs(name, given, saved, fix))
        elif given != saved:
            _say_taken(name, saved)
        setattr(args, name, saved)
    for setting, value in _forgotten(args, checkpoint_args):
        if not setting.restored:
            _say_taken(setting.name, value)
            setattr(args, setting.name, value)
    return problems


def _say_taken(name: str, value: object) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"grove_megatron: {name} ({value}) is taken from the checkpoint")
