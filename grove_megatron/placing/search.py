"""Partitions by exchanging units: what keeps most pairs of units together, for any size.

From several starts, each time the exchange of two units of different ranks that brings the most
pairs together, until none does (Kernighan and Lin 1970, by steepest ascent). Load over the limit
has a price, which rises from nothing until no rank is over it: a limit from the beginning would
forbid most exchanges. Tests compare it with complete search and with networkx's bisection.

Shape suffixes: U units, R ranks.
"""

from dataclasses import dataclass

import numpy as np

from .counts import Array
from .greedy import balanced, rank_loads

_RAISES = 24
"""By two each time."""


@dataclass(frozen=True)
class Task:
    """What is to be divided.

    Attributes:
        pairs: [U, U] symmetric, of each pair how much it is worth together; 0 on the diagonal.
        load: [U].
        kin: [R, R] symmetric, what a pair on these two ranks is worth: the identity where only
            the same rank counts.
        limit: the most load of a rank; that of :func:`.greedy.balanced` or more.
    """

    pairs: Array
    load: Array
    kin: Array
    limit: float

    @property
    def ranks(self) -> int:
        return len(self.kin)

    def worth(self, rank_U: Array) -> float:
        """Of a partition; more is better."""
        return float((self.pairs * self.kin[np.ix_(rank_U, rank_U)]).sum() / 2)

    def allows(self, rank_U: Array) -> bool:
        return bool(rank_loads(self.load, rank_U, self.ranks).max() <= self.limit)


def search(task: Task, first: Array, starts: int, seed: int) -> list[Array]:
    """Partitions within the limit that no exchange betters, the best first; one at least.

    Args:
        first: the rank of every unit to begin from.
        starts: how many others.
        seed: of those.
    """
    generator = np.random.default_rng(seed)
    orders = (generator.permutation(len(first)) % task.ranks for _ in range(starts))
    found = [_within_limit(task, start) for start in (first, *orders)]
    # The greedy balancer's own is within the limit whatever the others are.
    found.append(improved(task, balanced(task.load, task.ranks), np.inf))
    return sorted(filter(task.allows, found), key=task.worth, reverse=True)


def _within_limit(task: Task, rank_U: Array) -> Array:
    """Improved at a rising price of load, and at last within the limit, where that is reached."""
    rank_U = improved(task, rank_U, 0.0)
    price = task.worth(rank_U) / max(float(task.load.sum()), 1.0)
    for _ in range(_RAISES):
        if task.allows(rank_U):
            return improved(task, rank_U, np.inf)
        rank_U = improved(task, rank_U, price)
        price *= 2
    return rank_U


def improved(task: Task, rank_U: Array, price: float) -> Array:
    """Exchange units until nothing is to be gained.

    Args:
        rank_U: [U] the rank of every unit to begin from.
        price: of load over the limit, in worth of pairs; infinite: no exchange brings any.
    """
    rank_U, load, kin = rank_U.copy(), task.load, task.kin
    on_UR = (rank_U[:, None] == np.arange(task.ranks)).astype(float)
    # What a unit is worth on each rank, the others where they are.
    worth_UR = task.pairs @ on_UR @ kin
    carried = rank_loads(load, rank_U, task.ranks)
    every = np.arange(len(rank_U))

    def gains(of_N: Array) -> Array:
        """[N, U] what the exchange of some units with every other brings."""
        gain = worth_UR[of_N][:, rank_U] + worth_UR[:, rank_U[of_N]].T
        stay = worth_UR[every, rank_U]
        gain -= stay[of_N][:, None] + stay
        # Each was counted as if the other stayed.
        own = kin[rank_U, rank_U]
        both = kin[rank_U[of_N]][:, rank_U]
        gain -= task.pairs[of_N] * (own[of_N][:, None] + own - 2 * both)
        there, here = carried[rank_U], carried[rank_U[of_N]][:, None]
        there_after = there - load + load[of_N][:, None]
        here_after = here - load[of_N][:, None] + load
        if price == np.inf:
            gain[(there_after > task.limit) | (here_after > task.limit)] = -np.inf
        elif price:
            gain -= price * (
                np.maximum(0, there_after - task.limit)
                - np.maximum(0, there - task.limit)
                + np.maximum(0, here_after - task.limit)
                - np.maximum(0, here - task.limit)
            )
        gain[rank_U[of_N][:, None] == rank_U] = -np.inf
        return np.asarray(gain)

    gain_UU = gains(every)
    while True:
        a, b = divmod(int(gain_UU.argmax()), len(rank_U))
        # Sums of differences of shares: what is less is rounding.
        if gain_UU[a, b] <= 1e-12:
            return rank_U
        r, s = rank_U[a], rank_U[b]
        worth_UR += np.outer(task.pairs[:, b] - task.pairs[:, a], kin[r] - kin[s])
        carried[r] += load[b] - load[a]
        carried[s] -= load[b] - load[a]
        rank_U[a], rank_U[b] = s, r
        # Of units on other ranks nothing has changed.
        is_other = kin[r] != kin[s]
        is_other[[r, s]] = True
        changed = np.flatnonzero(is_other[rank_U])
        gain_UU[changed] = gains(changed)
        gain_UU[:, changed] = gain_UU[changed].T
