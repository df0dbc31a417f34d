"""The dispatcher's own plans, with lists of ranks in the place of process groups.

What ``moe/crossing.py`` does between two collectives is done here for one rank after the other, by
the same functions; the collectives are a transposition.

Shape suffixes: S sources, R ranks of the crossing, T tokens, E experts, P pairs, V rows received,
L experts that a rank of the crossing holds.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..functional.dispatch_plan import NOT_ROUTED, count_work, plan_send, receive_probs
from ..functional.expand_plan import plan_expand
from ..functional.placement import Placement


def cross(maps: Sequence[Tensor], ranks: int, groups: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What arrives at every rank of a crossing, one after the other.

    Args:
        maps: [T, E] bool of every source, the experts of its tokens among those of all ranks.
        ranks, groups: R, and groups of the E experts.

    Yields:
        the selection that came with the rows, [V, L] as ``receive_probs`` makes it; and the work
        it was announced as, [1 + L + L_groups] as of ``count_work``.
    """
    works = torch.stack([count_work(of_source, ranks, groups) for of_source in maps])
    local = maps[0].shape[1] // ranks
    rows_SR, pairs_SR = works[:, :, 0], works[:, :, 1 : 1 + local].sum(2)
    plans = [
        plan_send(of_source, ranks, int(rows), int(pairs))
        for of_source, rows, pairs in zip(maps, rows_SR.sum(1), pairs_SR.sum(1), strict=True)
    ]
    codes = exchanged(torch.cat([plan.code_P for plan in plans]), pairs_SR)
    for rank, code_P in enumerate(codes):
        rows_S = rows_SR[:, rank]
        # What a weight is, no plan asks.
        weights = torch.zeros(len(code_P))
        arrived = receive_probs(
            weights, code_P, rows_S, pairs_SR[:, rank], int(rows_S.sum()), local
        )
        yield arrived, works[:, rank].sum(0)


def exchanged(values: Tensor, counts_SR: Tensor) -> Sequence[Tensor]:
    """An all-to-all: for every destination what came, by source.

    Args:
        values: of all sources, one after the other, each ordered by destination.
        counts_SR: [S, R] int64, how many go from where to where.
    """
    sources, ranks = counts_SR.shape
    to = torch.arange(ranks).repeat(sources).repeat_interleave(counts_SR.flatten())
    ordered = values[to.argsort(stable=True)]
    return ordered.split(counts_SR.sum(0).tolist())


def land(packed_VL: Tensor, work: Tensor, placement: Placement) -> tuple[int, int, int]:
    """Plan the work of a rank: rows, routed pairs and adjugate pairs on it.

    Args:
        packed_VL: the selection that came.
        work: [1 + L + L_groups] int64, what was announced.
        placement: of the layer.
    """
    local = placement.experts_per_rank
    experts, groups = work[1 : 1 + local], work[1 + local :]
    plan = plan_expand(packed_VL, experts, groups)
    assert torch.equal((packed_VL != NOT_ROUTED).sum(0), experts), "not the announced experts"
    return plan.num_rows, plan.rows.index.numel(), plan.segments.owner_index.numel()
