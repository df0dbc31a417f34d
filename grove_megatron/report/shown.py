"""What figures are made of, and what they are made as."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from .arrays import Array
from .measures import per_layer, totals
from .record import Interval
from .series import binned


@dataclass(frozen=True)
class Drawn:
    """A figure in its place.

    Attributes:
        name: of its file, without what all files have.
        title: of its section.
        read: what to read from it.
        figure: None where there is nothing to draw; ``read`` then says why.
    """

    name: str
    title: str
    read: str
    figure: Figure | None


@dataclass(frozen=True)
class Shown:
    """Intervals few enough to see, and their measures: [intervals, layers] each.

    Attributes:
        every: the intervals of the record.
        intervals: the same, neighbours summed where there are too many.
        measures: of ``intervals``, see ``measures.per_layer``.
    """

    every: Sequence[Interval]
    intervals: list[Interval]
    measures: dict[str, Array]

    @classmethod
    def of(cls, every: Sequence[Interval]) -> "Shown":
        """Measure what will be shown."""
        intervals = binned(every)
        found = [per_layer(interval) for interval in intervals]
        layers = len(intervals[0].run.layers)
        none = np.full(layers, np.nan)
        names = {name for one in found for name in one}
        measures = {n: np.stack([one.get(n, none) for one in found]) for n in names}
        return cls(every, intervals, measures)

    @property
    def last(self) -> Interval:
        return self.intervals[-1]

    def totals(self, name: str) -> Array:
        return np.array([totals(interval)[name] for interval in self.intervals])
