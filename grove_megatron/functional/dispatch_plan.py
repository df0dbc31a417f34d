"""Which rows go to which rank: one row per distinct (token, rank).

Made by the rank that owns the tokens, from the routing map and never from top-k indices, so a
token may have any number of experts, none included.

    token owner                                              expert owner
    x_TH     --take token_U--> x_UH     ==all-to-all==> x_VH          (see expand_plan.py)
    probs_TE --take pairs-->   values_P ==all-to-all==> packed_VL
    y_TH     <--sum of bags--- y_UH     <==all-to-all== y_VH

T tokens, E experts, R ranks, L = E/R local experts; U rows sent, V rows received; P routed
(token, expert) pairs sent. With every row travels which of the destination's experts it needs and
their weights, as one record of 8 bytes per pair.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .groups import group_map
from .index import gather_distinct, scatter_distinct
from .permute import RowMap

NOT_ROUTED = float("-inf")
"""Stands in a row's weights where an expert was not selected.

The selection has to travel with the weights: ``weight != 0`` would lose a selected expert whose
weight underflowed, and with it the gradient of the router.
"""

MAX_POSITIONS = 2**31 - 1
"""A record names (row, local expert) by a position of 31 bits."""


def count_work(routing_map_TE: Tensor, num_ranks: int, num_groups: int) -> Tensor:
    """What every rank is asked to do: [R, 1 + L + L_groups] int64, on the map's device.

    Column 0: rows; then pairs per local expert of that rank; then pairs per local group. All that
    both sides need to size their buffers, so that one exchange and one copy to the host suffice.
    """
    num_tokens, num_experts = routing_map_TE.shape
    map_TRL = routing_map_TE.reshape(num_tokens, num_ranks, num_experts // num_ranks)
    columns = [map_TRL.any(-1, keepdim=True), map_TRL]
    if num_groups:
        by_rank = (num_tokens, num_ranks, num_groups // num_ranks)
        columns.append(group_map(routing_map_TE, num_groups).reshape(by_rank))
    # One sum for all of them.
    return torch.cat(columns, dim=-1).sum(0)


@dataclass(frozen=True, kw_only=True)
class SendPlan:
    """Rows this rank sends, ordered by destination rank, then by token.

    A token has one row per rank that holds at least one of its experts, however many of that
    rank's experts and adjugates it needs.

    Attributes:
        rows: token of every row [U], and the rows of every token.
        pair_P: [P] int64, position of every pair in the flattened [T, E]; by destination, then
            token, then expert.
        code_P: [P] int64, its position in the destination's [rows from here, L], flattened.
        num_tokens: T.
    """

    rows: RowMap
    pair_P: Tensor
    code_P: Tensor
    num_tokens: int


def plan_send(routing_map_TE: Tensor, num_ranks: int, num_rows: int, num_pairs: int) -> SendPlan:
    """Deduplicate a routing map [T, E] bool to one row per (token, rank).

    ``num_rows`` (U) and ``num_pairs`` (P) are the map's own counts, see :func:`count_work`: given
    by the caller, so that nothing here waits for the device.

    Raises:
        ValueError: more than MAX_POSITIONS tokens x local experts.
    """
    num_tokens, num_experts = routing_map_TE.shape
    local = num_experts // num_ranks
    if num_tokens * local > MAX_POSITIONS:
        raise ValueError(
            f"tokens on this rank ({num_tokens}) x experts on a rank ({local}) is above "
            f"{MAX_POSITIONS}, the positions a record can name; use a smaller micro batch"
        )
    map_RTL = routing_map_TE.reshape(num_tokens, num_ranks, local).transpose(0, 1).contiguous()
    in_rank_RT = map_RTL.any(-1)
    token_U = torch.nonzero_static(in_rank_RT, size=num_rows)[:, 1].contiguous()
    rank_P, token_P, expert_P = torch.nonzero_static(map_RTL, size=num_pairs).unbind(1)
    row_RT = in_rank_RT.cumsum(1) - 1
    return SendPlan(
        rows=RowMap.of(token_U, in_rank_RT.sum(0)),
        pair_P=expert_P.add(token_P, alpha=num_experts).add_(rank_P, alpha=local),
        code_P=expert_P.add(row_RT[rank_P, token_P], alpha=local),
        num_tokens=num_tokens,
    )


def pack_probs(probs_TE: Tensor, routing_map_TE: Tensor) -> Tensor:
    """Weights with the selection in them: [T, E], ``NOT_ROUTED`` where not selected."""
    return probs_TE.masked_fill(~routing_map_TE, NOT_ROUTED)


def send_values(probs_TE: Tensor, plan: SendPlan) -> Tensor:
    """The weights that travel: [P] in fp32, or wider if the weights are; differentiable."""
    wide = torch.promote_types(probs_TE.dtype, torch.float32)
    return gather_distinct(probs_TE.to(wide), plan.pair_P)


def receive_probs(
    values_P: Tensor,
    code_P: Tensor,
    rows_R: Tensor,
    pairs_R: Tensor,
    num_rows: int,
    num_local_experts: int,
) -> Tensor:
    """Undo :func:`send_values` on the other side: [V, L], as :func:`pack_probs` would give.

    Args:
        values_P, code_P: the records that came, ordered by source rank.
        rows_R, pairs_R: [R] int64 on the device, rows and pairs from every rank.
        num_rows: V, the sum of rows_R.
        num_local_experts: L.
    """
    first_row_R = rows_R.cumsum(0) - rows_R
    first_row_P = first_row_R.repeat_interleave(pairs_R, output_size=values_P.numel())
    position_P = code_P.add(first_row_P, alpha=num_local_experts)
    return scatter_distinct(values_P, position_P, (num_rows, num_local_experts), NOT_ROUTED)
