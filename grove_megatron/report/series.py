"""Intervals as series to draw: of one model, and few enough to see."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from .arrays import Added, Array
from .record import ARRAYS, Interval, Record

MOST_BINS = 160
"""More columns than this are no longer told apart in a heat map of a report."""


def of_one_model(record: Record) -> list[Interval]:
    """The intervals of the model trained last: those with its layers, experts, groups and top-k."""
    last = record.intervals[-1].run

    def same(interval: Interval) -> bool:
        run = interval.run
        return all(getattr(run, n) == getattr(last, n) for n in _SHAPE)

    return [interval for interval in record.intervals if same(interval)]


_SHAPE = ("layers", "experts", "groups", "topk")


def binned(intervals: Sequence[Interval], most: int = MOST_BINS) -> list[Interval]:
    """At most ``most`` intervals and one per run and gap, each the sum of some without a gap."""
    size = -(-len(intervals) // most)
    bins: list[list[Interval]] = []
    for interval in intervals:
        last = bins[-1][-1] if bins else None
        if (
            last is None
            or len(bins[-1]) >= size
            or last.run is not interval.run
            or _is_gap(last, interval)
        ):
            bins.append([])
        bins[-1].append(interval)
    return [summed(members) for members in bins]


def summed(members: Sequence[Interval]) -> Interval:
    """Intervals of one run that follow each other, as one; the bias is the last one's."""
    if len(members) == 1:
        return members[0]
    iterations = sum(m.iterations for m in members)
    names = {name for m in members for name in m.losses}
    losses = {
        name: sum(m.losses[name] * m.iterations for m in members if name in m.losses)
        / sum(m.iterations for m in members if name in m.losses)
        for name in names
    }
    # Members are of one run: all have pairs of local experts, and co-activation, or none.
    counted = [*ARRAYS, *(["local"] if members[0].local is not None else [])]
    arrays: dict[str, Any] = {
        name: np.sum([getattr(m, name) for m in members], axis=0) for name in counted
    }
    met = [m.coactivation for m in members if m.coactivation is not None]
    if met:
        arrays["coactivation"] = Added(met)
    return replace(members[-1], iterations=iterations, losses=losses, **arrays)


def ends(intervals: Sequence[Interval]) -> Array:
    """The last iteration of every interval."""
    return np.array([i.iteration for i in intervals])


def edges(intervals: Sequence[Interval]) -> Array:
    """Where columns begin and end, one more than there are: the intervals, and gaps between."""
    begins = [i.iteration - i.iterations for i in intervals]
    gaps = _gaps(intervals)
    return np.array([begins[0], *np.insert(ends(intervals), gaps, [begins[n] for n in gaps])])


def with_gaps(intervals: Sequence[Interval], values_I: Array, empty: float = np.nan) -> Array:
    """[intervals, ...] -> [columns, ...] of :func:`edges`, fp64: ``empty`` where there is a gap."""
    return np.insert(values_I.astype(float), _gaps(intervals), empty, axis=0)


def _gaps(intervals: Sequence[Interval]) -> list[int]:
    """Positions of the intervals before which iterations were not recorded."""
    return [n for n, (a, b) in enumerate(pairwise(intervals), 1) if _is_gap(a, b)]


def _is_gap(a: Interval, b: Interval) -> bool:
    return b.iteration - b.iterations > a.iteration


def resumed(intervals: Sequence[Interval]) -> list[int]:
    """The iterations after which another process went on."""
    return [a.iteration for a, b in pairwise(intervals) if a.run is not b.run]


def first_iteration(interval: Interval) -> int:
    """The first one it counts."""
    return interval.iteration - interval.iterations + 1


def span(interval: Interval) -> str:
    """The iterations it counts, as a reader writes them: 10, or 1-10."""
    return span_of([interval])


def span_of(intervals: Sequence[Interval]) -> str:
    """The same of several that follow each other."""
    first, last = first_iteration(intervals[0]), intervals[-1].iteration
    return str(first) if first == last else f"{first}-{last}"
