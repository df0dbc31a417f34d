"""Which rows go to which rank, and what happens to them there.

Two frozen values describe one call of the layer. :class:`SendPlan` is made by the rank that owns
the tokens; :class:`ExpandPlan` by the rank that owns the experts. Both are built from the routing
map, never from top-k indices, so a token may have any number of experts, none included.

    token owner                                     expert owner
    x_TH --take token_U--> x_UH ==all-to-all==> x_VH --take row_N--> x_NH -> experts    -> y_NH
                                                     --take row_M--> x_MH -> adjugates  -> a_MH
    y_TH <--add at token_U-- y_UH <==all-to-all== y_VH <--add at row_N, row_M-----------'
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .groups import group_map, group_probs

NOT_ROUTED = float("-inf")
"""Stands in a row's weights where an expert was not selected.

The selection has to travel with the weights: ``weight != 0`` would lose a selected expert whose
weight underflowed, and with it the gradient of the router.
"""


@dataclass(frozen=True, kw_only=True)
class SendPlan:
    """Rows this rank sends, ordered by destination rank, then by token.

    A token has one row per rank that holds at least one of its experts, however many of that
    rank's experts and adjugates it needs.

    Attributes:
        token_U: [U] int64, the token of every row.
        rank_U: [U] int64, the destination of every row, ascending.
        rows_per_rank: R ints, rows for every rank (the own rank included).
        num_tokens: T.
        routed_pairs: number of (token, expert) pairs these rows stand for.
    """

    token_U: Tensor
    rank_U: Tensor
    rows_per_rank: tuple[int, ...]
    num_tokens: int
    routed_pairs: int

    @property
    def rows(self) -> int:
        return int(self.token_U.numel())


def plan_send(routing_map_TE: Tensor, num_ranks: int) -> SendPlan:
    """Deduplicate a routing map [T, E] bool to one row per (token, rank)."""
    num_tokens, num_experts = routing_map_TE.shape
    by_rank = (num_tokens, num_ranks, num_experts // num_ranks)
    is_token_in_rank_TR = routing_map_TE.reshape(by_rank).any(-1)
    rank_U, token_U = is_token_in_rank_TR.T.nonzero(as_tuple=True)
    counts = torch.cat([is_token_in_rank_TR.sum(0), routing_map_TE.sum().reshape(1)])
    *rows_per_rank, routed_pairs = counts.tolist()
    return SendPlan(
        token_U=token_U,
        rank_U=rank_U,
        rows_per_rank=tuple(rows_per_rank),
        num_tokens=num_tokens,
        routed_pairs=routed_pairs,
    )


def pack_probs(probs_TE: Tensor, routing_map_TE: Tensor, plan: SendPlan) -> Tensor:
    """The weights that travel with every row: [U, L], ``NOT_ROUTED`` where not selected.

    Differentiable in ``probs_TE``; the dtype is kept.
    """
    num_ranks, num_experts = len(plan.rows_per_rank), probs_TE.shape[1]
    marked_TE = probs_TE.masked_fill(~routing_map_TE, NOT_ROUTED)
    marked_TRL = marked_TE.reshape(plan.num_tokens, num_ranks, num_experts // num_ranks)
    return marked_TRL[plan.token_U, plan.rank_U]


@dataclass(frozen=True, kw_only=True)
class ExpandPlan:
    """Work of this rank's experts on the rows it received.

    Attributes:
        row_N: [N] int64, row of every routed pair, ordered by local expert, then row.
        expert_N: [N] int64, local expert of every routed pair.
        tokens_per_expert: [L] int64 on the CPU, pairs per local expert; sums to N.
        row_M: [M] int64, row of every adjugate pair, ordered by local group, then row.
        group_M: [M] int64, local group of every adjugate pair.
        tokens_per_group: [L_groups] int64 on the CPU; sums to M.
        num_rows: V.
    """

    row_N: Tensor
    expert_N: Tensor
    tokens_per_expert: Tensor
    row_M: Tensor
    group_M: Tensor
    tokens_per_group: Tensor
    num_rows: int


def plan_expand(packed_probs_VL: Tensor, num_local_groups: int) -> ExpandPlan:
    """Read the selection that came with the rows, see :func:`pack_probs`."""
    selected_VL = packed_probs_VL != NOT_ROUTED
    group_map_VG = group_map(selected_VL, num_local_groups)
    expert_N, row_N = selected_VL.T.nonzero(as_tuple=True)
    group_M, row_M = group_map_VG.T.nonzero(as_tuple=True)
    return ExpandPlan(
        row_N=row_N,
        expert_N=expert_N,
        tokens_per_expert=selected_VL.sum(0).cpu(),
        row_M=row_M,
        group_M=group_M,
        tokens_per_group=group_map_VG.sum(0).cpu(),
        num_rows=packed_probs_VL.shape[0],
    )


def unpack_probs(
    packed_probs_VL: Tensor, plan: ExpandPlan, num_local_groups: int
) -> tuple[Tensor, Tensor]:
    """Weights of every routed pair [N] and of every adjugate pair [M], differentiable.

    The former in the dtype that came, the latter summed in fp32 or wider.
    """
    selected_VL = packed_probs_VL != NOT_ROUTED
    probs_VL = packed_probs_VL.masked_fill(~selected_VL, 0.0)
    wide = torch.promote_types(probs_VL.dtype, torch.float32)
    group_probs_VG = group_probs(probs_VL.to(wide), num_local_groups)
    return probs_VL[plan.row_N, plan.expert_N], group_probs_VG[plan.row_M, plan.group_M]
