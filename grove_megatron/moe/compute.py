"""Experts and adjugates on the received rows: one expansion in, one sum out.

V received rows, N (row, expert) pairs, M (row, group) pairs; see functional/expand_plan.py.
"""

from typing import Any

import torch
from megatron.core.transformer.moe.moe_layer import ExpertsInterface
from torch import Tensor

from ..functional.activation import weighted_swiglu
from ..functional.expand_plan import ExpandPlan
from ..functional.permute import expand_rows, reduce_rows
from ..functional.products import grouped_down, grouped_up
from .experts import GroupedExperts
from .kernel_choice import choose_kernels, widths_of


def one_pass(
    x_VH: Tensor,
    probs_N: Tensor,
    adjugate_probs_M: Tensor,
    *,
    plan: ExpandPlan,
    experts: GroupedExperts,
    adjugates: GroupedExperts,
    config: Any,
) -> Tensor:
    """Both kinds of experts by grouped products on the same rows: [V, H] -> [V, H].

    Args:
        x_VH: received rows.
        probs_N: weights of the routed pairs.
        adjugate_probs_M: weights of the adjugates' pairs, the scale included.
        plan: where the pairs lie.
        experts, adjugates: their matrices.
        config: names the kernels.
    """
    kernels = choose_kernels(
        config,
        x_VH,
        **widths_of(experts, "moe_ffn_hidden_size"),
        **widths_of(adjugates, "grove_adjugate_ffn_hidden_size"),
    )
    x_NH = expand_rows(x_VH, plan.rows, kernels)
    up, adjugate_up = experts.linear_fc1(), adjugates.linear_fc1()
    h_N, h_M = grouped_up(x_NH, up, adjugate_up, plan.segments, kernels)
    assert h_M is not None, "adjugates have rows of their own"
    a_N = weighted_swiglu(h_N, probs_N, kernels)
    a_M = weighted_swiglu(h_M, adjugate_probs_M, kernels)
    down, adjugate_down = experts.linear_fc2(), adjugates.linear_fc2()
    y_NH = grouped_down(a_N, a_M, down, adjugate_down, plan.segments, kernels)
    return reduce_rows(y_NH, plan.rows, kernels)


def module_by_module(
    x_VH: Tensor,
    probs_N: Tensor,
    adjugate_probs_M: Tensor,
    *,
    plan: ExpandPlan,
    experts: ExpertsInterface,
    adjugates: ExpertsInterface,
    config: Any,
) -> Tensor:
    """The same by Megatron's expert modules, which take rows of one kind each.

    Both always run, also on 0 rows: DDP waits for a gradient of every parameter.
    """
    kernels = choose_kernels(config, x_VH)
    both = plan.rows_of_both()
    pairs = [plan.segments.num_pairs, plan.segments.num_owner_pairs]
    x_NH, x_MH = torch.split(expand_rows(x_VH, both, kernels), pairs)
    y_NH, _ = experts(x_NH, plan.tokens_per_expert, probs_N)
    a_MH, _ = adjugates(x_MH, plan.tokens_per_group, adjugate_probs_M)
    return reduce_rows(torch.cat([y_NH, a_MH]), both, kernels)


def experts_alone(
    x_VH: Tensor,
    probs_N: Tensor,
    _: Tensor,
    *,
    plan: ExpandPlan,
    experts: ExpertsInterface,
    adjugates: None,
    config: Any,
) -> Tensor:
    """Experts of any kind in a plain MoE, where M is 0: [V, H] -> [V, H]."""
    kernels = choose_kernels(config, x_VH)
    x_NH = expand_rows(x_VH, plan.rows, kernels)
    y_NH, _ = experts(x_NH, plan.tokens_per_expert, probs_N)
    return reduce_rows(y_NH, plan.rows, kernels)
