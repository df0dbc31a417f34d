"""Random pairs of rows and experts, for the products."""

from dataclasses import dataclass

import torch
from torch import Tensor

from grove_megatron.functional.dispatch_plan import NOT_ROUTED
from grove_megatron.functional.expand_plan import Segments, plan_expand
from grove_megatron.functional.groups import group_map


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Segments, and what they say pair by pair: the loops of the tests read only this.

    Attributes:
        expert_N: expert of every pair.
        owner_M: the pairs that own an adjugate's work.
        group_M: the groups whose adjugates they are.
    """

    segments: Segments
    expert_N: list[int]
    owner_M: list[int]
    group_M: list[int]
    num_experts: int
    num_groups: int


def pairs_of(selected_VL: Tensor, num_groups: int) -> Pairs:
    """The pairs of a selection [V, L] bool."""
    packed = torch.zeros(selected_VL.shape).masked_fill(~selected_VL, NOT_ROUTED)
    per_group = group_map(selected_VL, num_groups).sum(0)
    segments = plan_expand(packed, selected_VL.sum(0), per_group).segments
    num_experts = selected_VL.shape[1]
    expert_N, owner_N, met = [], [], set()
    for expert in range(num_experts):
        group = expert // (num_experts // num_groups)
        rows = selected_VL[:, expert].nonzero()[:, 0].tolist()
        owners = [row for row in rows if (row, group) not in met]
        met |= {(row, group) for row in owners}
        expert_N += [expert] * len(rows)
        owner_N += [True] * len(owners) + [False] * (len(rows) - len(owners))
    owner_M = [n for n, owner in enumerate(owner_N) if owner]
    return Pairs(
        segments=segments,
        expert_N=expert_N,
        owner_M=owner_M,
        group_M=[expert_N[n] // (num_experts // num_groups) for n in owner_M],
        num_experts=num_experts,
        num_groups=num_groups,
    )


def selection(kind: str, num_experts: int, rows: int = 9, seed: int = 0) -> Tensor:
    """A selection [V, L] of experts, most rows with several of them."""
    chosen = torch.rand(rows, num_experts, generator=torch.Generator().manual_seed(seed)) < 0.6
    if kind == "empty experts":
        chosen[:, 1::2] = False
    if kind == "empty group":
        chosen[:, : num_experts // 2] = False
    if kind == "no pairs":
        chosen[:] = False
    if kind == "no rows":
        chosen = chosen[:0]
    return chosen


SELECTIONS = ("some", "empty experts", "empty group", "no pairs", "no rows")
