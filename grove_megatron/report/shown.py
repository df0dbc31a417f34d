"""What figures are made of, and what they are made as."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from .arrays import Array
from .measures import per_layer, totals
from .record import Interval
from .series import binned
from .view import View


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
        view: what the report is of.
        intervals: its own, neighbours summed where there are too many.
        measures: of ``intervals``, see ``measures.per_layer``.
    """

    view: View
    intervals: list[Interval]
    measures: dict[str, Array]

    @classmethod
    def of(cls, view: View) -> "Shown":
        """Measure what will be shown."""
        intervals = binned(view.intervals)
        found = [per_layer(interval) for interval in intervals]
        layers = len(intervals[0].run.layers)
        none = np.full(layers, np.nan)
        names = {name for one in found for name in one}
        measures = {n: np.stack([one.get(n, none) for one in found]) for n in names}
        return cls(view, intervals, measures)

    @property
    def last(self) -> Interval:
        return self.intervals[-1]

    def totals(self, name: str) -> Array:
        return np.array([totals(interval)[name] for interval in self.intervals])
