"""The knobs of a Grove model: one dataclass, from which the launch flags are made as well.

No ``from __future__ import annotations`` here: Megatron turns the annotations of these fields
into argparse types.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Literal

from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional as F

from .checks.experts import adjugate_width_problems, group_problems, topk_problems
from .checks.flags import flag_of
from .checks.problem import Problem, Refusal
from .checks.ranks import (
    adjugates_over_ranks,
    experts_over_ranks,
    groups_over_ranks,
    whole_norm_over_ranks,
)
from .checks.rules import Check
from .functional.groups import scale_bound
from .model.settings import MATRIX_OPTIMIZERS as MATRIX_OPTIMIZERS
from .model.settings import expert_tensor_parallel_size as expert_tensor_parallel_size
from .model.settings import has_adjugates as has_adjugates
from .model.settings import has_grove_layers as has_grove_layers
from .model.settings import moe_pattern as moe_pattern
from .parts import registry
from .placing import file as placement_file
from .switches import refusals


@dataclass
class GroveTransformerConfig(*registry.settings_classes(), TransformerConfig):  # type: ignore[misc]
    """Megatron's TransformerConfig with the settings of Grove MoE (arXiv 2508.07785) and of parts.

    Without ``grove_num_groups`` and ``grove_dispatch`` it is a plain TransformerConfig in every
    respect.
    """

    grove_num_groups: int | None = None
    """Number of equal, contiguous groups the routed experts are divided into; each group has one
    adjugate expert. Must divide --num-experts and be a multiple of the expert-parallel size.
    Absent or 0: a plain Megatron MoE."""

    grove_adjugate_ffn_hidden_size: int | None = None
    """FFN width of every adjugate expert (the released model: 128 beside routed experts of 768)."""

    grove_adjugate_scale: float = 0.05
    """Weight of the adjugate experts' sum; at most groups / experts (paper, section 3.1)."""

    grove_allow_scale_above_bound: bool = False
    """Accept a --grove-adjugate-scale above groups / experts."""

    grove_kernel: Literal["auto", "megatron", "grouped", "triton"] = "auto"
    """What computes experts and adjugates. megatron: the expert modules Megatron would build.
    grouped: both in one pass of torch's grouped products. triton: the same in fused CUDA kernels.
    auto: the fastest that takes the configuration and the shapes; what it passes over is logged."""

    grove_dispatch: bool = False
    """Without groups: compute Megatron's MoE layers with this package's layer, which sends a token
    to an expert-parallel rank once, not once for each of its experts there. Router, experts,
    losses and checkpoints are Megatron's. With groups that is so anyway."""

    grove_topk_scaled_input: bool = False
    """Multiply what experts compute with by the experts of a token, as in the released models of
    MoE++. The router and a shared expert see it as it is."""

    grove_whole_qk_norm: bool = False
    """One norm over all heads of the queries, and one of the keys, as OLMoE has them; by default,
    as Megatron's --qk-layernorm does it, a norm of every head."""

    grove_hierarchical_dispatch: bool = False
    """Send a token to every node once and pass it on inside the node, instead of to every rank.
    For expert parallelism over several nodes; the launcher says how many ranks a node has
    (LOCAL_WORLD_SIZE)."""

    grove_placement: str | None = None
    """File of grove place that says which groups, with their experts and adjugates, live on which
    expert-parallel rank. The model, its losses and its checkpoints are the same with any, and a run
    may go on with another or with none. By default rank r has the r-th slice of the groups."""

    def __post_init__(self) -> None:
        scoring = registry.one(self, "scoring") if has_grove_layers(self) else None
        own = has_grove_layers(self) and (scoring is None or scoring.name == "grove")
        score_function: str = self.moe_router_score_function  # type: ignore[has-type]
        if own and score_function == "softmax":
            # Megatron accepts an expert bias, and one expert a token, only beside a score function
            # of its own that has them. GroveRouter never asks this field for the weights.
            self.moe_router_score_function = "sigmoid"
        super().__post_init__()
        if registry.needs(self) and self.pipeline_model_parallel_size > 1:
            # A stage hands on hidden states with columns beside them. Not before: of lengths
            # that really vary Megatron asks more, which all ranks' equal shapes have no need of.
            self.variable_seq_lengths = True
        problems = grove_problems(self, num_experts=self.num_moe_experts)
        if has_grove_layers(self) and self.grove_kernel in GROUPED_KERNELS:
            why_not = grouped_experts_why_not(self)
            if why_not is not None:
                sentence = "{grove_kernel} cannot run: {why_not}; use auto"
                problems.append(Check(self).problem(sentence, why_not=why_not))
        if problems:
            raise Refusal(problems)


@dataclass
class JobSettings:
    """What is watched and shown of a run: of the job, and of no layer.

    In Megatron's argument namespace alone.
    """

    grove_metrics_interval: int | None = None
    """Report what the experts do (load, groups per token, rows sent, ranks) every so many
    iterations: to the log line, TensorBoard and W&B, and the record that grove report draws. By
    default at every --log-interval, where the log line shows it. 0: count nothing."""

    grove_metrics_dir: str | None = None
    """Folder for the record of these metrics; by default grove_metrics in --save, none without
    --save."""

    grove_metrics_coactivation: bool = False
    """Also record which groups (experts, where there are none) tokens meet together: a matrix for
    each layer, of which grove place makes a placement."""

    grove_failure_watch: Literal["on", "off"] = "on"
    """on: a rank that fails, is killed or vanishes ends the whole job within seconds, with one
    message. off: Megatron's own behaviour; the other ranks wait in a collective until it times
    out."""

    grove_stall_minutes: float | None = None
    """Once no rank has got on for so many minutes (no collective, stage of work or byte of a
    checkpoint), say who holds the job up and where every rank is; again after twice as long. The
    job goes on. By default nothing is said before a collective times out."""

    grove_preset: str | None = None
    """A released model, by name: what it is, sizes, router and losses, stands for the flags that
    are left out. A flag that says otherwise is refused."""

    grove_train_only: list[str] | None = None
    """Train these weights and freeze the others: adjugates, experts, router, local, shared, dense,
    attention, norms, embedding, mtp, or regular expressions for Megatron's names. A frozen router
    keeps its bias and has no balance losses. By default all are trained."""

    grove_print_arguments: Literal["changed", "all"] = "changed"
    """Of Megatron's 800 arguments, print those that differ from its defaults, or all."""


GROUPED_KERNELS = ("grouped", "triton")
"""Values of --grove-kernel that store the experts stacked."""

NOT_OF_THE_WEIGHTS = (
    "grove_allow_scale_above_bound",
    "grove_kernel",
    "grove_dispatch",
    "grove_hierarchical_dispatch",
    "grove_placement",
    *sorted(registry.free()),
)
"""Settings of a layer that may differ between the run that wrote a checkpoint and one that reads
it; those of the job may anyway."""

OF_GROUPS = frozenset(
    (
        "grove_adjugate_ffn_hidden_size",
        "grove_adjugate_scale",
        "grove_allow_scale_above_bound",
        *registry.of_groups(),
    )
)
"""Settings that mean nothing without groups; a plain MoE with --grove-dispatch takes the others."""

IMPORTED = "grove_imported"
"""In the arguments of a checkpoint that `grove import` made, plain models included."""

MOST_COACTIVATED = 512
"""Units whose pairs a job counts: 2 MiB for each layer in a report."""
PLACED = "grove_placement_digest"
"""In the arguments of a run with a placement that moves something: what it says, as a digest."""


@cache
def layer_defaults() -> dict[str, Any]:
    """Names and defaults of the settings of a Grove layer, in flag order; made once."""
    names = [*GroveTransformerConfig.__annotations__, *registry.settings_names()]
    defaults = {f.name: f.default for f in fields(GroveTransformerConfig)}
    return {name: defaults[name] for name in names}


@cache
def grove_defaults() -> dict[str, Any]:
    """Names and defaults of all Grove settings, in flag order; made once."""
    return layer_defaults() | {f.name: f.default for f in fields(JobSettings)}


def unknown_settings(saved: Any) -> dict[str, Any]:
    """Settings in the arguments of a checkpoint that another version has written: name, value.

    Args:
        saved: an argument namespace.
    """
    known = grove_defaults().keys() | {IMPORTED, PLACED}
    return {
        name: value
        for name, value in vars(saved).items()
        if name.startswith("grove_") and name not in known and value not in (None, False)
    }


def is_checked(args: Any) -> bool:
    """Do this package's checks, notices and listings hold for the run? Megatron's own has none."""
    return has_grove_layers(args)


def grove_problems(settings: Any, *, num_experts: int | None) -> list[Problem]:
    """What is wrong with the Grove settings, flags spelled as on the command line.

    Args:
        settings: a :class:`GroveTransformerConfig` or Megatron's argument namespace; the fields
            used here have the same names in both, except the number of experts.
        num_experts: routed experts, None for a dense model.
    """
    if has_adjugates(settings):
        return [*_group_problems(settings, num_experts)]
    plain = has_grove_layers(settings)
    found = _plain_problems(settings, num_experts) if plain else ()
    return [*_without_groups(settings, plain), *found]


def _without_groups(settings: Any, plain: bool) -> Iterator[Problem]:
    """Settings that nothing reads: of a model without groups, or without our layer."""
    check = Check(settings)
    without = "is set without {grove_num_groups}"
    # What contradicts a preset is said as that.
    spoken_of = ("grove_num_groups", "grove_preset")
    for name, default in grove_defaults().items():
        # A configuration has none of the job's.
        if name in spoken_of or getattr(settings, name, default) == default:
            continue
        if name in OF_GROUPS:
            fix = "set the number of groups, or remove it"
            yield check.problem(f"{{{name}}} {without}; {fix}")
        elif not plain:
            fix = "give one of them, or remove it"
            yield check.problem(f"{{{name}}} {without} or {{grove_dispatch}}; {fix}")


def _group_problems(settings: Any, num_experts: int | None) -> Iterator[Problem]:
    yield from group_problems(settings, num_experts)
    yield from groups_over_ranks(settings)
    yield from _adjugate_problems(settings, num_experts)
    if num_experts:
        yield from topk_problems(settings, num_experts, registry.local_experts(settings))
        yield from _problems_of_layer(settings, num_experts)


def _problems_of_layer(settings: Any, num_experts: int) -> Iterator[Problem]:
    """With groups or in a plain MoE."""
    yield from registry.problems(settings)
    yield from _qk_norm_problems(settings)
    yield from _kernel_problems(settings)
    yield from _placement_problems(settings, num_experts)
    yield from _metrics_problems(settings)
    yield from refusals(settings)


def _qk_norm_problems(settings: Any) -> Iterator[Problem]:
    if not settings.grove_whole_qk_norm:
        return
    check = Check(settings)
    yield from check.needs("grove_whole_qk_norm", "qk_layernorm", "add it")
    yield from check.excludes("grove_whole_qk_norm", "multi_latent_attention", "remove one of them")
    norm = settings.normalization
    yield from check.those(
        {
            "{grove_whole_qk_norm} is an RMSNorm beside {normalization}; use --normalization "
            "RMSNorm": norm != "RMSNorm",
        }
    )
    yield from whole_norm_over_ranks(settings)


def _adjugate_problems(settings: Any, num_experts: int | None) -> Iterator[Problem]:
    check = Check(settings)
    scale, narrow = settings.grove_adjugate_scale, [*adjugate_width_problems(settings)]
    yield from narrow
    if not narrow:
        yield from adjugates_over_ranks(settings, expert_tensor_parallel_size(settings))
    yield from check.finite("grove_adjugate_scale", "the paper's value is 0.05")
    groups = settings.grove_num_groups
    if num_experts and groups > 0 and not settings.grove_allow_scale_above_bound:
        bound = scale_bound(groups, num_experts)
        if bound < scale < math.inf:
            yield check.problem(
                "{grove_adjugate_scale} is above groups / experts ({bound}); lower it, or pass "
                "--grove-allow-scale-above-bound",
                bound=f"{bound:g}",
            )


def _plain_problems(settings: Any, num_experts: int | None) -> Iterator[Problem]:
    """Of --grove-dispatch without groups."""
    if not num_experts:
        yield Check(settings, num_experts=num_experts).problem(
            "{grove_dispatch} is set for a dense model, {num_experts}; set --num-experts, or "
            "remove it"
        )
        return
    yield from experts_over_ranks(settings, num_experts)
    yield from _problems_of_layer(settings, num_experts)


def grouped_experts_why_not(config: TransformerConfig) -> str | None:
    """Why experts of this configuration cannot be ``moe.experts.GroupedExperts``, or None."""
    differs = {
        "activation_func": config.activation_func is not F.silu,
        "gated_linear_unit": not config.gated_linear_unit,
        "add_bias_linear": config.add_bias_linear,
        "fp8": bool(config.fp8),
        "fp4": bool(config.fp4),
        "activation_func_clamp_value": config.activation_func_clamp_value is not None,
        "activation_func_fp8_input_store": config.activation_func_fp8_input_store,
        "glu_linear_offset": config.glu_linear_offset != 0,
        "moe_mlp_glu_interleave_size": config.moe_mlp_glu_interleave_size is not None,
        "use_te_activation_func": config.use_te_activation_func,
        "use_kitchen": config.use_kitchen,
        "moe_latent_size": config.moe_latent_size is not None,
        "moe_apply_probs_on_input": config.moe_apply_probs_on_input,
    }
    settings = [f"{name} ({getattr(config, name)})" for name, is_so in differs.items() if is_so]
    if not settings:
        return None
    return f"grouped experts compute SwiGLU without biases, not {', '.join(settings)}"


def _kernel_problems(settings: Any) -> Iterator[Problem]:
    check = Check(settings)
    kernel = settings.grove_kernel
    yield from check.one_of("grove_kernel", ("auto", "megatron", *GROUPED_KERNELS), "use auto")
    if kernel not in GROUPED_KERNELS:
        return
    if settings.transformer_impl != "local":
        yield check.problem(
            "{grove_kernel} would replace the experts of {transformer_impl}; use "
            "--transformer-impl local, or --grove-kernel auto"
        )
    # Only a command line knows the optimizer.
    if getattr(settings, "optimizer", None) in MATRIX_OPTIMIZERS:
        yield check.problem(
            "{grove_kernel} stacks the experts' matrices, which {optimizer} needs one by one; use "
            "--grove-kernel megatron"
        )


def _placement_problems(settings: Any, num_experts: int) -> Iterator[Problem]:
    path = settings.grove_placement
    if path is None:
        return
    try:
        found = placement_file.problems(
            placement_file.read(path),
            path,
            experts=num_experts,
            groups=settings.grove_num_groups or 0,
            ranks=settings.expert_model_parallel_size,
            layers=moe_layer_names(settings),
        )
    except Refusal as refusal:
        found = refusal.problems
    for one in found:
        yield replace(one, flag=flag_of("grove_placement"))
    check = Check(settings)
    # Of a configuration, and of a command line.
    for name in ("fp8_param", "fp8_param_gather"):
        if getattr(settings, name, False):
            why = "which holds weights that cannot be moved as they are"
            yield check.problem(
                f"{{grove_placement}} excludes {{{name}}}, {why}; remove one of them"
            )
    if getattr(settings, "non_persistent_ckpt_type", None) == "local":
        why = "whose files hold what every rank has and not which experts they are"
        sentence = f"{{grove_placement}} excludes {{non_persistent_ckpt_type}}, {why}; use global"
        yield check.problem(sentence)


def moe_layer_names(settings: Any) -> tuple[str, ...] | None:
    """Of the layers with experts as records have them, ``3`` or ``mtp 1``; None: not known.

    Args:
        settings: a configuration or an argument namespace of a model with experts.
    """
    frequency = settings.moe_layer_freq
    if isinstance(frequency, int) and frequency < 1:
        return None
    pattern = moe_pattern(settings)
    depths = settings.mtp_num_layers or 0
    modules = min(depths, 1) if settings.mtp_use_repeated_layer else depths
    decoder = [str(layer) for layer, has_experts in enumerate(pattern, 1) if has_experts]
    # An MTP layer is one like the last of the decoder.
    return (*decoder, *(f"mtp {layer + 1}" for layer in range(modules if any(pattern[-1:]) else 0)))


def _metrics_problems(settings: Any) -> Iterator[Problem]:
    # Only a command line has them.
    check = Check(settings)
    if not hasattr(settings, "grove_metrics_interval"):
        return
    fix = "use a number of iterations, or 0 for no metrics"
    yield from check.at_least("grove_metrics_interval", 0, fix)
    if settings.grove_metrics_interval == 0 and settings.grove_metrics_dir is not None:
        sentence = (
            "{grove_metrics_dir} gets nothing at {grove_metrics_interval}; remove one of them"
        )
        yield check.problem(sentence)
    if settings.grove_metrics_coactivation:
        yield from _coactivation_problems(settings)
    yield from _stall_problems(settings)


def _coactivation_problems(settings: Any) -> Iterator[Problem]:
    check = Check(settings)
    if settings.grove_metrics_interval == 0:
        sentence = "{grove_metrics_coactivation} is not counted at {grove_metrics_interval}; "
        yield check.problem(sentence + "remove one of them")
    unit = "grove_num_groups" if settings.grove_num_groups else "num_experts"
    units = getattr(settings, unit, None)
    if units is not None and units > MOST_COACTIVATED:
        layers = settings.num_layers * units**2 * 8 // 2**20
        yield check.problem(
            f"{{grove_metrics_coactivation}} counts every pair of {{{unit}}}, {layers} MiB of each "
            f"report in --num-layers ({settings.num_layers}) layers; it is for at most "
            f"{MOST_COACTIVATED}, remove it"
        )


def _stall_problems(settings: Any) -> Iterator[Problem]:
    check, minutes = Check(settings), settings.grove_stall_minutes
    if minutes is None:
        return
    yield from check.finite("grove_stall_minutes", "give minutes, 5 for one", above=True)
    fix = "remove one of them"
    off = "{grove_stall_minutes} needs the connections that {grove_failure_watch} takes away; "
    yield from check.those({off + fix: settings.grove_failure_watch == "off"})
    yield from check.excludes("grove_stall_minutes", "inprocess_restart", fix)
    late = (
        "{grove_stall_minutes} is not below {distributed_timeout_minutes}, after which collectives "
        "end the job; give less"
    )
    yield from check.those({late: minutes >= settings.distributed_timeout_minutes})
