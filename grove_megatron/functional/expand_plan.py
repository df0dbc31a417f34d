"""What happens to the rows a rank has received: which experts and adjugates work on them.

    x_VH --take row_N--> x_NH -> experts, and adjugates on the owner rows -> y_NH --sum--> y_VH

V rows received, L local experts in L_groups groups, N (row, expert) pairs, M (row, group) pairs.

The first selected expert of a row's group *owns* that (row, group) pair, and the adjugate reads
and adds to the owner's row. So adjugates need no rows of their own: no second gather, no second
sum. Pairs are ordered by expert, owners first, so that both kinds of work are contiguous:

    x_NH:  [ e0 owners | e0 others ][ e1 owners | e1 others ][ e2 owners ...
    x_MH:  [ e0 owners ][ e1 owners ][ e2 owners ] ...            (experts 0, 1 are group 0, ...)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .dispatch_plan import NOT_ROUTED
from .groups import group_probs
from .index import gather_distinct
from .permute import RowMap


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Where every expert's and every adjugate's rows lie among the pairs.

    Attributes:
        expert_end: [L] int32, on the device; end of every expert's pairs among the N.
        owner_end: [L] int32, on the device; end of every expert's owner pairs among the M.
        owner_index: [M] int64, on the device; the owner pairs among the N.
        experts_per_group: experts that share an adjugate.
        num_pairs, num_owner_pairs: N, M.
    """

    expert_end: Tensor
    owner_end: Tensor
    owner_index: Tensor
    experts_per_group: int
    num_pairs: int
    num_owner_pairs: int

    @staticmethod
    def of_experts(tokens_per_expert: Tensor, device: torch.device) -> "Segments":
        """Of experts alone, without adjugates; tokens_per_expert [L] int64."""
        end = tokens_per_expert.cumsum(0, dtype=torch.int32).to(device, non_blocking=True)
        return Segments(
            expert_end=end,
            owner_end=torch.zeros_like(end),
            owner_index=torch.empty(0, dtype=torch.int64, device=device),
            experts_per_group=1,
            num_pairs=sum(tokens_per_expert.tolist()),
            num_owner_pairs=0,
        )


@dataclass(frozen=True, kw_only=True)
class ExpandPlan:
    """Work of this rank's experts and adjugates on the rows it received.

    Attributes:
        rows: row of every pair [N], and the pairs of every row.
        position_N: [N] int64, the pairs' positions in the flattened [V, L].
        owner_position_M: [M] int64, their positions in the flattened [V, L_groups].
        segments: the bounds of every expert's rows.
        tokens_per_expert: [L] int64 on the CPU; sums to N.
        tokens_per_group: [L_groups] int64 on the CPU; sums to M.
        num_rows: V.
    """

    rows: RowMap
    position_N: Tensor
    owner_position_M: Tensor
    segments: Segments
    tokens_per_expert: Tensor
    tokens_per_group: Tensor
    num_rows: int

    def rows_of_both(self) -> RowMap:
        """Rows of the N pairs, then rows of the M pairs by group: for experts in modules."""
        row_M = self.rows.index[self.segments.owner_index]
        index = torch.cat([self.rows.index, row_M])
        per_row = self.rows.bag_start.diff()
        per_row = per_row.scatter_add(0, row_M, torch.ones_like(row_M))
        return RowMap.of(index, per_row)


def plan_expand(
    packed_probs_VL: Tensor, tokens_per_expert: Tensor, tokens_per_group: Tensor
) -> ExpandPlan:
    """Read the selection that came with the rows.

    Args:
        packed_probs_VL: [V, L], ``NOT_ROUTED`` where an expert was not selected.
        tokens_per_expert, tokens_per_group: [L], [L_groups] int64 on the CPU, the selection's own
            counts; given by the caller, so that nothing here waits for the device.
    """
    num_groups = tokens_per_group.numel()
    selected_VL = packed_probs_VL != NOT_ROUTED
    if num_groups == 0:
        return _plan_experts(selected_VL, tokens_per_expert, tokens_per_group)
    num_rows, num_experts = packed_probs_VL.shape
    group_size = num_experts // num_groups
    pairs, owner_pairs = sum(tokens_per_expert.tolist()), sum(tokens_per_group.tolist())

    selected_VGm = selected_VL.reshape(num_rows, num_groups, group_size)
    first_VGm = selected_VGm & (selected_VGm.cumsum(-1, dtype=torch.int32) == 1)
    owner_VL = first_VGm.reshape(num_rows, num_experts)
    # [L, 2, V]: an expert's owners, then its other rows, each in the order of rows.
    ordered = torch.stack([owner_VL.T, (selected_VL ^ owner_VL).T], dim=1)
    expert_N, other_N, row_N = torch.nonzero_static(ordered, size=pairs).unbind(1)
    owner_N = torch.nonzero_static(other_N == 0, size=owner_pairs)[:, 0]
    position_N = expert_N.add(row_N, alpha=num_experts)
    return ExpandPlan(
        rows=RowMap.of(row_N.contiguous(), selected_VL.sum(1)),
        position_N=position_N,
        # (row * L + expert) // group size = row * L_groups + group
        owner_position_M=position_N[owner_N] // group_size,
        segments=Segments(
            expert_end=selected_VL.sum(0).cumsum(0, dtype=torch.int32),
            owner_end=owner_VL.sum(0).cumsum(0, dtype=torch.int32),
            owner_index=owner_N,
            experts_per_group=group_size,
            num_pairs=pairs,
            num_owner_pairs=owner_pairs,
        ),
        tokens_per_expert=tokens_per_expert,
        tokens_per_group=tokens_per_group,
        num_rows=num_rows,
    )


def _plan_experts(
    selected_VL: Tensor, tokens_per_expert: Tensor, tokens_per_group: Tensor
) -> ExpandPlan:
    """Without groups: pairs by expert, in the order of rows."""
    segments = Segments.of_experts(tokens_per_expert, selected_VL.device)
    expert_N, row_N = torch.nonzero_static(selected_VL.T, size=segments.num_pairs).unbind(1)
    return ExpandPlan(
        rows=RowMap.of(row_N.contiguous(), selected_VL.sum(1)),
        position_N=expert_N.add(row_N, alpha=selected_VL.shape[1]),
        owner_position_M=row_N.new_empty(0),
        segments=segments,
        tokens_per_expert=tokens_per_expert,
        tokens_per_group=tokens_per_group,
        num_rows=selected_VL.shape[0],
    )


def unpack_probs(packed_probs_VL: Tensor, plan: ExpandPlan) -> tuple[Tensor, Tensor]:
    """Weights of every routed pair [N] and of every owner pair's adjugate [M], differentiable.

    The former in the dtype that came, the latter summed over the group in fp32 or wider.
    """
    probs_N = gather_distinct(packed_probs_VL, plan.position_N)
    wide = torch.promote_types(probs_N.dtype, torch.float32)
    num_groups = plan.tokens_per_group.numel()
    if num_groups == 0:
        return probs_N, probs_N.new_empty(0, dtype=wide)
    probs_VL = packed_probs_VL.masked_fill(packed_probs_VL == NOT_ROUTED, 0.0)
    group_probs_VG = group_probs(probs_VL.to(wide), num_groups)
    return probs_N, gather_distinct(group_probs_VG, plan.owner_position_M)
