"""The best of all partitions, for few units.

A partition costs what its sets cost, so the best one of some units is a set that holds the first of
them, and the best one of the rest. All subsets of at most 16 units have room in a table.

Shape suffixes: M all subsets of the units, as numbers whose bits are units; S sets of one size;
U units.
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np

from .counts import Array

MOST_UNITS = 16


def subsets(units: int, size: int) -> Array:
    """[S, U] bool, every set of that size."""
    chosen = np.array([*combinations(range(units), size)], np.int64).reshape(-1, size)
    inside = np.zeros((len(chosen), units), bool)
    np.put_along_axis(inside, chosen, True, axis=1)
    return inside


def cheapest(
    units: int,
    ranks: int,
    per_node: int,
    rank_cost: Callable[[Array], Array],
    node_cost: Callable[[Array], Array] | None,
) -> Array | None:
    """The partition into equal sets whose costs have the smallest sum.

    Args:
        units: at most :data:`MOST_UNITS`, a multiple of ``ranks``.
        ranks: how many sets.
        per_node: ranks of a node; all of them where nodes cost nothing.
        rank_cost: of sets [S, U] bool, [S]; infinite where a set is not allowed.
        node_cost: of the sets of nodes likewise; None: nodes cost nothing.

    Returns:
        [U] the rank of every unit, nodes one after the other; None where none is allowed.
    """
    assert units <= MOST_UNITS, units
    of_rank = subsets(units, units // ranks)
    inner = _Table(units, _numbers(of_rank), rank_cost(of_rank))
    inner.fill(per_node)
    everything = 2**units - 1
    if node_cost is None:
        assert per_node == ranks, per_node
        parts = inner.parts(everything)
    else:
        of_node = subsets(units, units // ranks * per_node)
        numbers = _numbers(of_node)
        outer = _Table(units, numbers, node_cost(of_node) + inner.cost_M[numbers])
        outer.fill(ranks // per_node)
        nodes = outer.parts(everything)
        parts = None if nodes is None else [p for n in nodes for p in inner.parts(n) or []]
    if parts is None:
        return None
    rank_U = np.zeros(units, np.int64)
    for rank, part in enumerate(parts):
        rank_U[[unit for unit in range(units) if part >> unit & 1]] = rank
    return rank_U


def _numbers(inside_SU: Array) -> Array:
    return np.asarray(inside_SU @ (1 << np.arange(inside_SU.shape[1])))


class _Table:
    """The cheapest way to divide every subset into allowed sets."""

    def __init__(self, units: int, sets_S: Array, cost_S: Array) -> None:
        self._sets, self._cost = sets_S, cost_S
        self.cost_M = np.full(2**units, np.inf)
        self.cost_M[0] = 0
        self.cost_M[sets_S] = cost_S
        self._first_M = np.zeros(2**units, np.int64)
        self._first_M[sets_S] = sets_S
        every = np.arange(2**units)
        self._lowest_M = every & -every
        self._sizes_M = np.bitwise_count(every)
        self._size = int(np.bitwise_count(sets_S[0]))

    def fill(self, sets: int) -> None:
        """Subsets of up to so many sets."""
        begins_S = self._sets & -self._sets
        for number in range(2, sets + 1):
            meant = np.flatnonzero(self._sizes_M == number * self._size)
            for begin in np.unique(begins_S):
                some = meant[self._lowest_M[meant] == begin]
                here = begins_S == begin
                self._fill(some, self._sets[here], self._cost[here])

    def _fill(self, subsets_N: Array, sets_S: Array, cost_S: Array) -> None:
        # Not all at once, where there are many of both.
        for some in np.array_split(subsets_N, 1 + len(subsets_N) * len(sets_S) // 2**20):
            is_inside = (sets_S & ~some[:, None]) == 0
            rest = np.where(is_inside, some[:, None] ^ sets_S, 0)
            cost = np.where(is_inside, cost_S + self.cost_M[rest], np.inf)
            best = cost.argmin(1)
            self.cost_M[some] = cost[np.arange(len(some)), best]
            self._first_M[some] = sets_S[best]

    def parts(self, subset: int) -> list[int] | None:
        """The sets that a subset is divided into."""
        if not np.isfinite(self.cost_M[subset]):
            return None
        found = []
        while subset:
            found.append(int(self._first_M[subset]))
            subset ^= found[-1]
        return found
