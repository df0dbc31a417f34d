"""Where the units of one layer go, and whether that is more than chance.

One half of what was recorded chooses, the other half judges: what a choice has of the noise of its
own half it does not have in the other. A saving is claimed where the other half has it too, and by
more than :data:`SURE` standard deviations; a layer without keeps its order.

Shape suffixes: U units, R ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np

from . import exact
from .counts import Array, Counts, Evidence, summed
from .greedy import balanced, rank_loads
from .rows import Rows, rows, shares
from .search import Task, search

SURE = 4.0
"""Standard deviations: one layer in 30,000 where there is nothing to find."""
_FEW = 4
"""Parts of which a spread can be told."""
_TRIED = 4
"""Partitions of a search of which the rows are looked at."""
_SMALL = 4
"""So many times what rows are off from those that the job counted, a saving has to be."""

Verdict = Literal["saves", "balances", "noise", "kept", "off"]


@dataclass(frozen=True)
class Goal:
    """What is asked.

    Attributes:
        ranks: expert-parallel, R.
        per_node: of a node, where a token goes to a node once; None: to every rank from its own.
        node_cost: what a row between nodes costs, in rows inside one.
        over_greedy: the largest load of a rank, over that of the greedy balancer.
        seed: of the search.
    """

    ranks: int
    per_node: int | None = None
    node_cost: float = 1.0
    over_greedy: float = 1.02
    seed: int = 0

    @property
    def nodes(self) -> int:
        return 1 if self.per_node is None else self.ranks // self.per_node


@dataclass(frozen=True)
class State:
    """What an order of units makes of the judging half.

    Attributes:
        ranks: that a token meets.
        nodes: the same; None without.
        load: of all parts, the largest of a rank over the mean.
    """

    ranks: Rows
    nodes: Rows | None
    load: float


@dataclass(frozen=True)
class Placed:
    """A layer.

    Attributes:
        order: the unit in every physical slot; None: as it is.
        verdict: saves rows; balances the load, whatever the rows; what was found is noise; nothing
            better was found; or a saving was, and rows are off from those that the job counted by
            more than a part of it.
        before, after: as it is, and with what was found, also where it is not used.
        now: ranks that a token meets as it is, of which a saving is claimed: the lowest that is
            known, counted or estimated.
        deviation: standard deviation of the cost saved, in rows of a token.
        saved: cost that the judging half has less, in rows of a token inside a node: at least
            that.
        greedy: the largest load of a rank over the mean, as the greedy balancer has it.
        complete: were all partitions looked at?
        tokens: that judged.
        counted: see :class:`.counts.Evidence`.
    """

    order: tuple[int, ...] | None
    verdict: Verdict
    before: State
    after: State
    now: float
    deviation: float
    saved: float
    greedy: float
    complete: bool
    tokens: float
    counted: float | None


def place(evidence: Evidence, goal: Goal, current_U: Array) -> Placed | None:
    """Place one layer.

    Args:
        evidence: two parts or more.
        goal: what is asked.
        current_U: [U] the unit in every slot now.

    Returns:
        None: tokens of half of the parts have no expert, so there is nothing to go by.
    """
    choosing, judging = summed(evidence.parts[::2]), summed(evidence.parts[1::2])
    if not choosing.load.any() or not judging.load.any():
        return None
    whole = summed(evidence.parts)
    now_U = _ranks_of(current_U, goal.ranks)
    load = whole.load.astype(float)
    mean = max(load.mean() * len(load) / goal.ranks, 1e-9)
    greedy = rank_loads(load, balanced(load, goal.ranks), goal.ranks).max()
    limit = goal.over_greedy * greedy
    task = Task(choosing.pairs, load, _kin(goal), limit)
    complete = len(load) <= exact.MOST_UNITS
    found_U = (
        _complete(choosing, task, goal) if complete else _searched(choosing, task, goal, now_U)
    )
    found_U = _in_order(found_U, goal)
    before, after = (
        _state(judging, rank_U, goal, rank_loads(load, rank_U, goal.ranks).max() / mean)
        for rank_U in (now_U, found_U)
    )
    likely = _cost(before, goal, "even") - _cost(after, goal, "even")
    low, counted = before.ranks.low, evidence.counted
    now = low if counted is None else min(counted, low)
    least = _cost(before, goal, "low") - low + now - _cost(after, goal, "high")
    off = 0.0 if not counted else abs(before.ranks.even / counted - 1) * _cost(before, goal, "even")
    deviation = _deviation(evidence.parts[1::2], now_U, found_U, goal, before, after)
    verdict: Verdict = "noise"
    if (_in_order(now_U, goal) == found_U).all():
        verdict = "kept"
    elif min(likely, least) > SURE * deviation:
        verdict = "saves" if least > _SMALL * off else "off"
    if (
        verdict not in ("kept", "saves")
        and before.load * mean > limit
        and _is_lighter(judging, now_U, found_U, goal)
    ):
        verdict = "balances"
    elif likely <= 0:
        verdict = "kept"
    order = np.argsort(found_U, kind="stable").tolist()
    return Placed(
        order=tuple(order) if verdict in ("saves", "balances") else None,
        verdict=verdict,
        before=before,
        after=after,
        now=now,
        deviation=deviation,
        saved=least,
        greedy=greedy / mean,
        complete=complete,
        tokens=judging.tokens,
        counted=counted,
    )


def _kin(goal: Goal) -> Array:
    same = np.eye(goal.ranks)
    if goal.per_node is None:
        return same
    node_R = np.arange(goal.ranks) // goal.per_node
    return same + goal.node_cost * (node_R[:, None] == node_R)


def _complete(counts: Counts, task: Task, goal: Goal) -> Array:
    """By the rows themselves."""

    def of_ranks(inside_SU: Array) -> Array:
        is_light = inside_SU @ task.load <= task.limit
        return np.where(is_light, shares(counts, inside_SU.T), np.inf)

    def of_nodes(inside_SU: Array) -> Array:
        return goal.node_cost * shares(counts, inside_SU.T)

    per_node, nodes = (goal.ranks, None) if goal.per_node is None else (goal.per_node, of_nodes)
    found = exact.cheapest(len(task.load), goal.ranks, per_node, of_ranks, nodes)
    assert found is not None, "the greedy balancer's own is allowed"
    return found


def _searched(counts: Counts, task: Task, goal: Goal, now_U: Array) -> Array:
    """By pairs kept together; of the best few the one with the fewest rows."""
    # Each is some exchanges a unit, whose gains are a row for every unit of two ranks.
    starts = max(2, min(128, 2**28 // len(task.load) ** 3))
    found = search(task, now_U, starts, goal.seed)[:_TRIED]
    return min(found, key=lambda rank_U: _cost(_state(counts, rank_U, goal, 0.0), goal, "high"))


def _state(counts: Counts, rank_U: Array, goal: Goal, load: float) -> State:
    nodes = None
    if goal.per_node is not None:
        nodes = rows(counts, rank_U // goal.per_node, goal.nodes)
    return State(rows(counts, rank_U, goal.ranks), nodes, load)


def _cost(state: State, goal: Goal, which: Literal["even", "low", "high", "deviation"]) -> float:
    cost: float = getattr(state.ranks, which)
    return cost if state.nodes is None else cost + goal.node_cost * getattr(state.nodes, which)


def _deviation(
    parts: Sequence[Counts],
    now_U: Array,
    found_U: Array,
    goal: Goal,
    before: State,
    after: State,
) -> float:
    """Of the cost saved: as tokens alone would have it, or as it differs between parts if more."""
    tokens = np.array([part.tokens for part in parts])
    spread = (_cost(before, goal, "deviation") + _cost(after, goal, "deviation")) / sqrt(
        tokens.sum()
    )
    kept = [part for part in parts if part.tokens]
    if len(kept) < _FEW:
        return spread
    saved = np.array(
        [
            _cost(_state(part, now_U, goal, 0.0), goal, "even")
            - _cost(_state(part, found_U, goal, 0.0), goal, "even")
            for part in kept
        ]
    )
    return max(spread, float(saved.std(ddof=1)) / sqrt(len(saved)))


def _is_lighter(counts: Counts, now_U: Array, found_U: Array, goal: Goal) -> bool:
    """Has the judging half a smaller largest load too, by more than chance?"""
    heaviest = [rank_loads(counts.load, u, goal.ranks).max() for u in (now_U, found_U)]
    # A token brings a rank up to so many pairs at once.
    together = max(1.0, counts.load.sum() / counts.tokens)
    noise = sum(sqrt(together * one) for one in heaviest)
    return bool(heaviest[0] - heaviest[1] > SURE * noise)


def _in_order(rank_U: Array, goal: Goal) -> Array:
    """The same partition, its nodes and then their ranks numbered by their first units."""
    node_U = rank_U // (goal.per_node or goal.ranks)
    first_U = [
        (int((node_U == node).argmax()), int((rank_U == rank).argmax()))
        for node, rank in zip(node_U, rank_U, strict=True)
    ]
    number = {first: rank for rank, first in enumerate(sorted(set(first_U)))}
    return np.array([number[first] for first in first_U])


def _ranks_of(order_U: Array, ranks: int) -> Array:
    rank_U = np.empty(len(order_U), np.int64)
    rank_U[order_U] = np.arange(len(order_U)) // (len(order_U) // ranks)
    return rank_U
