"""Which units tokens meet together, beside what independent choices would give.

Shape suffixes as in record.py: L layers, U units.
"""

from collections.abc import Sequence

import numpy as np

from ..placing.search import Task, search
from .arrays import Array
from .record import Interval

_BLOCKS = 8
_STARTS = 4
_MANY = 128
"""Units of which one start takes as long as all of those of fewer."""


def expected_pairs(together_UU: Array) -> Array:
    """[U, U] fp64, tokens that would meet both of two units if they chose independently.

    As often as they did choose each, and as many pairs in all as they did: a token that has a fixed
    number of experts has fewer pairs than one that tosses a coin for each. 0 on the diagonal.
    """
    met_U = together_UU.diagonal().astype(float)
    product = np.outer(met_U, met_U)
    np.fill_diagonal(product, 0)
    return np.asarray(product * counted_pairs(together_UU).sum() / max(1.0, product.sum()))


def counted_pairs(together_UU: Array) -> Array:
    """[U, U] fp64, without the diagonal."""
    pairs = together_UU.astype(float)
    np.fill_diagonal(pairs, 0)
    return pairs


def blocks(interval: Interval) -> int:
    """Of which the map is reordered: the run's expert-parallel ranks, or what would be some."""
    units, ranks = interval.run.units, interval.run.ranks
    if ranks > 1:
        return ranks
    return max(n for n in range(1, min(_BLOCKS, units) + 1) if units % n == 0)


def together_order(together_UU: Array, parts: int) -> Array:
    """[U] units in an order whose equal parts hold many pairs; load is not looked at."""
    units = len(together_UU)
    task = Task(counted_pairs(together_UU), np.zeros(units), np.eye(parts), 0.0)
    starts = _STARTS if units <= _MANY else 1
    best_U = search(task, np.arange(units) // (units // parts), starts, 0)[0]
    return np.lexsort((np.arange(units), best_U))


def share_inside(pairs_UU: Array, order_U: Array, parts: int) -> float:
    """Of all pairs the share that both lie in one part; NaN without pairs."""
    part_U = np.empty(len(order_U), np.int64)
    part_U[order_U] = np.arange(len(order_U)) // (len(order_U) // parts)
    total = pairs_UU.sum()
    return float((pairs_UU * (part_U[:, None] == part_U)).sum() / total) if total else np.nan


def strongest_pairs(together_UU: Array, number: int) -> list[tuple[int, int, int, float]]:
    """Those furthest above what is expected, in tokens: unit, unit, counted, expected."""
    expected = expected_pairs(together_UU)
    above = np.triu(counted_pairs(together_UU) - expected)
    places = np.argsort(-above, axis=None, kind="stable")[:number]
    found = [divmod(int(place), len(above)) for place in places]
    return [(a, b, int(together_UU[a, b]), float(expected[a, b])) for a, b in found if a != b]


def strongest_layer(together_LUU: Array, orders_LU: Sequence[Array], parts: int) -> int:
    """Where an order gathers most of what independent choices would leave apart."""
    gains = []
    for together_UU, order_U in zip(together_LUU, orders_LU, strict=True):
        counted = share_inside(counted_pairs(together_UU), order_U, parts)
        gains.append(counted - share_inside(expected_pairs(together_UU), order_U, parts))
    return int(np.nanargmax(gains)) if np.isfinite(gains).any() else 0
