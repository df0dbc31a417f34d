"""The ``reporting`` patches: Megatron's own FLOPs and memory figures, adjugates included.

Its list of arguments is cut down to those that were chosen.

Megatron counts the routed experts, the shared ones and everything else of a Grove model; what it
prints, writes to TensorBoard and keeps in checkpoints lacks the adjugates, and takes every expert
of a token for one with an FFN. For a run with neither groups nor local experts the functions below
return what Megatron's return.
"""

import copy
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from ..config import grove_defaults, has_adjugates, has_grove_layers, is_checked, moe_pattern
from ..model.selection import ffn_per_token
from ..parts import registry
from ..planner import traffic
from ..planner.activations import adjugate_activations
from ..planner.flops import adjugate_flops
from ..planner.sizes import is_gated
from ..runtime.fingerprints import megatron_patch
from ..runtime.registry import PatchSet
from . import evaluations
from .megatrons_flags import megatrons_flags
from .sizes import sizes_of

_measured: float | None = None
_measured_experts: float | None = None


def set_measured_groups_per_token(groups: float | None, experts: float | None = None) -> None:
    """Tell the FLOPs count how many adjugates an average token used in a layer.

    Where tokens have local experts, also how many experts with an FFN; None: as expected.

    Averaged over tokens and Grove layers, MTP layers included. It holds from the next count on,
    until another is told; None returns to the expectation. Megatron adds up the FLOPs of a run on
    every rank and prints those of the last, so tell all ranks the same.

    Raises:
        ValueError: the number is negative.
    """
    global _measured, _measured_experts
    if groups is not None and not groups >= 0:
        raise ValueError(f"groups per token ({groups}) is not 0 or more; pass a mean, or None")
    _measured, _measured_experts = groups, experts


def groups_per_token(args: Namespace) -> float:
    """Distinct groups that an average token meets in a layer: measured, or else expected."""
    return traffic.groups_per_token(sizes_of(args).model) if _measured is None else _measured


def _computed(args: Namespace) -> Namespace:
    """A copy whose tokens have as many experts as have an FFN: measured, or else expected."""
    if not (has_grove_layers(args) and registry.local_experts(args)):
        return args
    found, measured = copy.copy(args), _measured_experts
    found.moe_router_topk = ffn_per_token(sizes_of(args).model) if measured is None else measured
    return found


def announce_flops(args: Namespace) -> None:
    """Say on rank 0 what the FLOPs of a Grove run count before anything is measured."""
    if has_adjugates(args) and _measured is None and os.environ.get("RANK", "0") == "0":
        print(
            f"grove_megatron: FLOPs count {groups_per_token(args):.3f} adjugates a token and "
            "layer, expected under uniform routing, until they are measured",
            file=sys.stderr,
            flush=True,
        )


def _flops(original: Callable[..., Any]) -> Callable[..., Any]:
    def num_floating_point_operations(
        args: Namespace,
        batch_size: int,
        seqlen_squared_sum_in_batch: float | None = None,
        total_real_tokens_in_batch: float | None = None,
    ) -> Any:
        """Megatron's count and, for a Grove model, that of its adjugates."""
        counted = original(
            _computed(args), batch_size, seqlen_squared_sum_in_batch, total_real_tokens_in_batch
        )
        if not has_adjugates(args):
            return counted
        tokens = total_real_tokens_in_batch
        pattern = moe_pattern(args)
        return counted + adjugate_flops(
            batch_size * args.seq_length if tokens is None else tokens,
            args.hidden_size,
            args.grove_adjugate_ffn_hidden_size,
            gated=is_gated(args),
            groups=groups_per_token(args),
            # An MTP layer is one like the last of the decoder.
            layers=sum(pattern) + (args.mtp_num_layers or 0) * pattern[-1],
        )

    return num_floating_point_operations


def _weights(original: Callable[..., Any]) -> Callable[..., Any]:
    def compute_weight_and_optimizer_memory(args: Namespace, verbose: bool = False) -> Any:
        """Megatron's, of routed experts as wide as experts and adjugates together."""
        computed = _computed(args)
        if has_adjugates(args):
            computed = _with_adjugates(computed, groups_per_token(args))
        return original(computed, verbose=verbose)

    return compute_weight_and_optimizer_memory


def _with_adjugates(args: Namespace, groups: float) -> Namespace:
    """A copy whose routed experts have the adjugates' parameters too, in total and active ones.

    Both are split over the expert-parallel ranks in the same way. Megatron counts two matrices of
    a width, three with ``args.swiglu`` alone: with quick GEGLU an adjugate is as large as two
    matrices half as wide again.
    """
    experts, width = args.num_experts, args.grove_adjugate_ffn_hidden_size
    if is_gated(args) and not args.swiglu:
        width = width * 3 / 2
    mean = args.moe_ffn_hidden_size + args.grove_num_groups * width / experts
    active = args.moe_router_topk * args.moe_ffn_hidden_size + groups * width
    together = copy.copy(args)
    together.moe_ffn_hidden_size = mean
    together.moe_router_topk = active / mean
    return together


def _activations(original: Callable[..., Any]) -> Callable[..., Any]:
    def compute_activation_memory(
        args: Namespace, num_microbatches: int | None, verbose: bool = False
    ) -> Any:
        """Megatron's, of the first pipeline stage, and what the adjugates keep there."""
        counted = original(_computed(args), num_microbatches, verbose=verbose)
        if not has_adjugates(args):
            return counted
        layers = sum(moe_pattern(args)) * _in_flight(args, num_microbatches)
        return counted + layers * adjugate_activations(sizes_of(args), groups_per_token(args))

    return compute_activation_memory


def _in_flight(args: Namespace, num_microbatches: int | None) -> float:
    """Megatron's factor of the layers: a stage has 1/p of them, for p microbatches at most."""
    stages: int = args.pipeline_model_parallel_size
    virtual = args.virtual_pipeline_model_parallel_size
    if virtual is not None:
        return float(1 + (stages - 1) / (stages * virtual))
    return 1.0 if num_microbatches is None else min(1.0, num_microbatches / stages)


def _arguments(original: Callable[..., None]) -> Callable[..., None]:
    def print_args(title: str, args: Namespace) -> None:
        """Megatron's list without what nobody chose, which is 9 in 10 lines of it."""
        from megatron.training.utils import is_rank0

        if not is_checked(args) or args.grove_print_arguments == "all":
            original(title, args)
        elif is_rank0():
            changed = changed_arguments(args)
            original(title, Namespace(**changed))
            print(
                f"({len(changed)} of {len(vars(args))} arguments: those that differ from "
                "Megatron's defaults; --grove-print-arguments all prints every one)",
                flush=True,
            )

    return print_args


def changed_arguments(args: Namespace) -> dict[str, Any]:
    """Arguments that are not at Megatron's default, or for which it has none."""
    defaults = grove_defaults() | vars(megatrons_flags()[1])
    return {
        name: value
        for name, value in vars(args).items()
        if name not in defaults or repr(value) != repr(defaults[name])
    }


_MEMORY = "megatron.training.theoretical_memory_usage"

REPORTING = PatchSet(
    "reporting",
    "what Megatron prints of a Grove model, and hooks that it lacks (CUDA machines too)",
    [
        *evaluations.PATCHES,
        megatron_patch(
            name="flops",
            target="megatron.training.training:num_floating_point_operations",
            reason="the training loop calls it by this name; it has no place for other experts",
            make=_flops,
        ),
        megatron_patch(
            name="arguments",
            target="megatron.training.arguments:_print_args",
            reason="800 lines at every start, among which nobody finds the 50 that were chosen",
            make=_arguments,
        ),
        megatron_patch(
            name="theoretical-weights",
            target=f"{_MEMORY}:compute_weight_and_optimizer_memory",
            reason="the report of memory and parameters that the training loop prints calls it",
            make=_weights,
        ),
        megatron_patch(
            name="theoretical-activations",
            target=f"{_MEMORY}:compute_activation_memory",
            reason="the same report, with sequence parallelism and selective recompute",
            make=_activations,
        ),
        megatron_patch(
            name="theoretical-activations-otherwise",
            target=f"{_MEMORY}:compute_activation_memory_without_sp",
            reason="the same report, otherwise",
            make=_activations,
        ),
    ],
)
