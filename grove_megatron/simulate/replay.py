"""One micro batch of one layer on all virtual ranks: what the dispatcher would send, and work on.

Every rank's routing map is counted with the function by which the dispatcher sizes its buffers
(``count_work``). The plans themselves, of the sender, of the second hop and of the receiver, are
then made too and have to come to the same: of every rank, or of the first ones where that would
take more than some seconds.

Ranks are worked on in pieces, and tokens of a rank too where they are many; everything adds up.

Shape suffixes: R ranks, S of them in a piece, N nodes, T tokens, K experts of a token, E experts,
C = 1 + L + L_groups, see ``count_work``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..comm.node_groups import spread_over_nodes
from ..functional.dispatch_plan import NOT_ROUTED, count_work
from ..report.trace import NONE
from .draw import routing_map
from .flow import Flow, to_everybody
from .plans import cross, land
from .routing import Routing
from .sizes import Sizes

_MAP = 2**24
"""Entries of a routing map at a time."""
_MAPS = 2**27
"""Of those of a piece, a byte each."""
_WORK = 2**22
"""Ranks of a piece x ranks."""
_PLANNED = 2**28
"""Entries that plans are made from: the plans of more take more than some ten seconds."""
_PER_RANK = 2**16
"""What else the plans of a piece take for every rank, in entries."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What was counted.

    Attributes:
        layer, step: of what.
        tokens: [R] int64.
        flat: rows to every rank that needs them.
        two_hops: to every node, then inside it; None where that would be one hop.
        node_rows: rows to nodes, the own one included: a row of a token to each.
        stock: of Megatron's all-to-all.
        all_gather: of Megatron's all-gather.
        pairs, adjugate_pairs: [R] int64, work of the ranks.
        planned: ranks of which plans were made.
    """

    layer: str
    step: int
    tokens: Tensor
    flat: Flow
    two_hops: Flow | None
    node_rows: int
    stock: Flow
    all_gather: Flow
    pairs: Tensor
    adjugate_pairs: Tensor
    planned: int


def replay(
    routing: Routing, sizes: Sizes, layer: str, step: int, order: Sequence[int] | None = None
) -> Replay:
    """Count a micro batch.

    Args:
        routing: whose tokens.
        sizes: of the layer.
        layer, step: which of its micro batches.
        order: the expert in every physical slot, of a placement; None: as they are numbered.
    """
    slot_of = None
    if order is not None:
        # One more, for the entry that stands for no expert: the last, at -1.
        slot_of = torch.full((sizes.experts + 1,), NONE)
        slot_of[torch.tensor(order)] = torch.arange(sizes.experts)
    counted = _Counted(sizes)
    tokens = torch.zeros(sizes.ranks, dtype=torch.int64)
    piece: list[tuple[int, Tensor]] = []
    entries = 0
    for rank in range(sizes.ranks):
        chosen_TK = routing.experts(layer, step, rank)
        tokens[rank] = len(chosen_TK)
        if slot_of is not None:
            chosen_TK = slot_of[chosen_TK]
        for some_TK in chosen_TK.split(max(1, _MAP // sizes.experts)):
            piece.append((rank, routing_map(some_TK, sizes.experts)))
            entries += len(some_TK) * sizes.experts
            if entries > _MAPS or len(piece) * sizes.ranks >= _WORK:
                counted.add(piece)
                piece, entries = [], 0
    if piece:
        counted.add(piece)
    return Replay(
        layer=layer,
        step=step,
        tokens=tokens,
        flat=counted.flat,
        two_hops=counted.across.then(counted.inside) if sizes.two_hops else None,
        node_rows=counted.node_rows,
        stock=counted.flat.a_row_for_each_pair(),
        all_gather=to_everybody(tokens, sizes.per_node),
        pairs=counted.work[:, 0],
        adjugate_pairs=counted.work[:, 1],
        planned=len(counted.planned),
    )


class _Counted:
    """Sums over pieces of ranks."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.flat, self.across, self.inside = (Flow.none(sizes.ranks) for _ in range(3))
        # Routed pairs and adjugate pairs.
        self.work = torch.zeros(sizes.ranks, 2, dtype=torch.int64)
        self.rank_NP = torch.tensor(spread_over_nodes(range(sizes.ranks), sizes.per_node))
        self.node_rows = 0
        self.planned: set[int] = set()
        self.plans_left = _PLANNED

    def add(self, piece: list[tuple[int, Tensor]]) -> None:
        """Count the maps of some ranks, and see that their plans do the same."""
        sizes, local = self.sizes, self.sizes.placement.experts_per_rank
        ranks, maps = [rank for rank, _ in piece], [map_TE for _, map_TE in piece]
        work_SRC = torch.stack([count_work(map_TE, sizes.ranks, sizes.groups) for map_TE in maps])
        rows_SR, pairs_SR = work_SRC[:, :, 0], work_SRC[:, :, 1 : 1 + local].sum(2)
        work = torch.stack([pairs_SR.sum(0), work_SRC[:, :, 1 + local :].sum((0, 2))], 1)
        self.work += work
        source_S1 = torch.tensor(ranks)[:, None]
        source_SR, rank_SR = torch.broadcast_tensors(source_S1, torch.arange(sizes.ranks))
        self.flat.add(source_SR, rank_SR, rows_SR, pairs_SR, sizes.per_node)
        first_SN = torch.stack(
            [count_work(map_TE, sizes.nodes, sizes.groups)[:, 0] for map_TE in maps]
        )
        self.node_rows += int(first_SN.sum())
        if sizes.two_hops:
            self._add_two_hops(source_S1, first_SN, rows_SR, pairs_SR)
        if self.plans_left > 0:
            entries = sum(map_TE.numel() for map_TE in maps)
            self.plans_left -= entries + _PER_RANK * sizes.ranks
            self.planned.update(ranks)
            rows_and_work = torch.cat([rows_SR.sum(0)[:, None], work], 1)
            self._plan_flat(maps, rows_and_work)
            if sizes.two_hops:
                self._plan_two_hops(source_S1[:, 0], maps, first_SN, rows_and_work)

    def _add_two_hops(
        self, source_S1: Tensor, first_SN: Tensor, rows_SR: Tensor, pairs_SR: Tensor
    ) -> None:
        """Count both hops.

        A row goes to the rank in the source's place on every node, from there on to every rank
        that the flat dispatch would have sent it to.
        """
        sizes, node = self.sizes, self.sizes.per_node
        through_SN = self.rank_NP.T[source_S1[:, 0] % node]
        pairs_SN = pairs_SR.unflatten(1, (sizes.nodes, node)).sum(2)
        self.across.add(source_S1.expand_as(first_SN), through_SN, first_SN, pairs_SN, node)
        through_SR = through_SN.repeat_interleave(node, 1)
        rank_SR = torch.arange(sizes.ranks).expand_as(rows_SR)
        self.inside.add(through_SR, rank_SR, rows_SR, pairs_SR, node)

    def _plan_flat(self, maps: list[Tensor], expected_R3: Tensor) -> None:
        """Plans of the flat dispatch, to the work on the received rows."""
        crossed = cross(maps, self.sizes.ranks, self.sizes.groups)
        landed = [land(*arrived, self.sizes.placement) for arrived in crossed]
        assert landed == [tuple(row) for row in expected_R3.tolist()], "plans are not what counts"

    def _plan_two_hops(
        self, source_S: Tensor, maps: list[Tensor], first_SN: Tensor, expected_R3: Tensor
    ) -> None:
        """The same of the dispatch in two hops."""
        sizes = self.sizes
        groups = sizes.groups // sizes.nodes
        came: dict[tuple[int, int], Tensor] = {}
        for place in range(sizes.per_node):
            mine = torch.nonzero(source_S % sizes.per_node == place)[:, 0].tolist()
            some = [maps[index] for index in mine] or [maps[0][:0]]
            for node, (packed, _) in enumerate(cross(some, sizes.nodes, sizes.groups)):
                assert len(packed) == int(first_SN[mine, node].sum()), "plans are not what counts"
                came[node, place] = packed != NOT_ROUTED
        landed = []
        for node in range(sizes.nodes):
            sent_on = [came.pop((node, place)) for place in range(sizes.per_node)]
            for arrived in cross(sent_on, sizes.per_node, groups):
                landed.append(land(*arrived, sizes.placement))
        assert landed == [tuple(row) for row in expected_R3.tolist()], "plans are not what counts"
