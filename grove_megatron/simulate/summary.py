"""What was counted, as figures: of tokens, of ranks, of nodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..planner.traffic import expected_sets
from .flow import ACROSS, ON_NODE, Flow
from .replay import Replay
from .sizes import MAP_BYTES, RECORD_BYTES, WEIGHT_BYTES, Sizes


@dataclass(frozen=True)
class Spread:
    """A number of every rank or node, over all micro batches.

    Args:
        mean, p50, p99, max: of them.
        imbalance: most over mean, the mean of the micro batches; None where all is 0.
    """

    mean: float
    p50: float
    p99: float
    max: float
    imbalance: float | None


@dataclass(frozen=True)
class Dispatch:
    """One way to send, forward; the combine brings the same rows back, without what goes beside.

    Args:
        rows_on_node, rows_across: of a token, to other ranks of a node and to other nodes.
        sent, received: bytes that leave a rank, and that come to it.
        node_sent, node_received: bytes that leave a node, and that come to it.
    """

    rows_on_node: float
    rows_across: float
    sent: Spread
    received: Spread
    node_sent: Spread
    node_received: Spread

    @property
    def rows_leaving(self) -> float:
        """Of a token, that leave a rank."""
        return self.rows_on_node + self.rows_across


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All figures of some micro batches.

    Attributes:
        tokens: of all ranks, in all of them.
        micro_batches: of how many layers and steps.
        planned_ranks: of which plans were made, the fewest of a micro batch.
        rows_per_token: to ranks, the own one included, as the dispatch line of a job counts.
        node_rows_per_token: the same to nodes.
        groups_per_token: adjugates that a token needs; 0 without groups.
        uniform_rows, uniform_node_rows, uniform_groups: what uniform routing would have.
        flat, two_hops, stock, all_gather: ways to send; None where two hops would be one.
        pairs, adjugate_pairs, rows: work of a rank, and rows that come to it in the flat dispatch,
            the own ones included.
    """

    tokens: int
    micro_batches: int
    planned_ranks: int
    rows_per_token: float
    node_rows_per_token: float
    groups_per_token: float
    uniform_rows: float
    uniform_node_rows: float
    uniform_groups: float
    flat: Dispatch
    two_hops: Dispatch | None
    stock: Dispatch
    all_gather: Dispatch
    pairs: Spread
    adjugate_pairs: Spread
    rows: Spread


def summarize(replays: Sequence[Replay], sizes: Sizes) -> Summary:
    """The figures of one or more micro batches of layers of the same sizes."""
    tokens = sum(int(one.tokens.sum()) for one in replays)
    row = sizes.row_bytes

    def sent_as(flow_of: Callable[[Replay], Flow], row_bytes: int, pair_bytes: int) -> Dispatch:
        return _dispatch([flow_of(one) for one in replays], tokens, sizes, row_bytes, pair_bytes)

    def expected(sets: int) -> float:
        return expected_sets(sizes.experts, sets, sizes.routed)

    def total(of: Callable[[Replay], Tensor]) -> float:
        return sum(int(of(one).sum()) for one in replays) / tokens

    two_hops = None
    if sizes.two_hops:
        two_hops = sent_as(lambda one: one.two_hops or one.flat, row, RECORD_BYTES)
    beside = sizes.experts * (MAP_BYTES + WEIGHT_BYTES)
    return Summary(
        tokens=tokens,
        micro_batches=len(replays),
        planned_ranks=min(one.planned for one in replays),
        rows_per_token=total(lambda one: one.flat.sent_rows),
        node_rows_per_token=sum(one.node_rows for one in replays) / tokens,
        groups_per_token=total(lambda one: one.adjugate_pairs),
        uniform_rows=expected(sizes.ranks),
        uniform_node_rows=expected(sizes.nodes),
        uniform_groups=expected(sizes.groups) if sizes.groups else 0.0,
        flat=sent_as(lambda one: one.flat, row, RECORD_BYTES),
        two_hops=two_hops,
        stock=sent_as(lambda one: one.stock, row + WEIGHT_BYTES, 0),
        all_gather=sent_as(lambda one: one.all_gather, row + beside, 0),
        pairs=spread([one.pairs for one in replays]),
        adjugate_pairs=spread([one.adjugate_pairs for one in replays]),
        rows=spread([one.flat.received_rows.sum(1) for one in replays]),
    )


def spread(of_ranks: Sequence[Tensor]) -> Spread:
    """Of numbers [ranks or nodes] of every micro batch."""
    every = torch.stack(list(of_ranks)).double()
    means = every.mean(1)
    imbalance = None
    if bool((means > 0).all()):
        imbalance = float((every.amax(1) / means).mean())
    ordered = every.flatten().sort().values
    p50, p99 = (_quantile(ordered, share) for share in (0.5, 0.99))
    return Spread(float(every.mean()), p50, p99, float(ordered[-1]), imbalance)


def _quantile(ordered: Tensor, share: float) -> float:
    """As of torch.quantile, which takes up to 2^24 values."""
    place = share * (len(ordered) - 1)
    below = int(place)
    low, high = (
        ordered[below : below + 2].tolist() if place > below else [float(ordered[below])] * 2
    )
    return float(low + (place - below) * (high - low))


def _dispatch(
    flows: Sequence[Flow], tokens: int, sizes: Sizes, row_bytes: int, pair_bytes: int
) -> Dispatch:
    def of_ranks(rows: Tensor, pairs: Tensor) -> Tensor:
        """[R, 3] bytes."""
        return rows * row_bytes + pairs * pair_bytes

    sent = [of_ranks(flow.sent_rows, flow.sent_pairs) for flow in flows]
    received = [of_ranks(flow.received_rows, flow.received_pairs) for flow in flows]

    def leaving(of: Sequence[Tensor]) -> Spread:
        return spread([one[:, ON_NODE] + one[:, ACROSS] for one in of])

    def abroad(of: Sequence[Tensor]) -> Spread:
        return spread([one[:, ACROSS].reshape(sizes.nodes, -1).sum(1) for one in of])

    def rows(distance: int) -> float:
        return sum(int(flow.sent_rows[:, distance].sum()) for flow in flows) / tokens

    return Dispatch(
        rows_on_node=rows(ON_NODE),
        rows_across=rows(ACROSS),
        sent=leaving(sent),
        received=leaving(received),
        node_sent=abroad(sent),
        node_received=abroad(received),
    )
