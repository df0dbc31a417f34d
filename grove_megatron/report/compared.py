"""Figures of many runs, measured over the same number of iterations, and of their systems.

Nothing is drawn here: the functions are for scripts too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np

from .measures import longest_idle, numbers
from .record import Interval
from .series import ends, first_iteration, summed
from .systems import System, systems
from .view import View, tokens, tokens_per_second, validations


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run.

    Attributes:
        view: its history.
        first, last: iterations that its figures are of.
        figures: by name: those of ``page.GLANCED``, ``parameters``, ``<set>_loss`` of every
            validation set with the ``<set>_iteration`` it was made at, and ``<loss>_at_common``;
            absent or NaN where one does not apply.
    """

    view: View
    first: int
    last: int
    figures: dict[str, float]

    @property
    def seed(self) -> Any:
        """As it was recorded, or None."""
        return self.view.last.run.settings.get("seed")

    @property
    def train_iterations(self) -> int | None:
        """At which the run will be over, if that is recorded."""
        value = self.view.last.run.settings.get("train-iters")
        return value if type(value) is int else None


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds of a system: of ``count`` that have it; NaN where none has."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Runs beside one another.

    Attributes:
        window: iterations at the end of every run that figures are of, as far as its intervals
            allow.
        common: the last iteration of every loss, by its name, at which all runs have it that have
            it at all; without those that have none.
        systems: what the runs are seeds of.
        rows: of the runs of every system.
    """

    window: int
    common: dict[str, int]
    systems: list[System]
    rows: list[list[Row]]

    @property
    def every_row(self) -> list[Row]:
        return [row for own in self.rows for row in own]

    def names(self) -> list[str]:
        """Of all figures that any run has."""
        known = (n for row in self.every_row for n, v in row.figures.items() if not isnan(v))
        return list(dict.fromkeys(known))


def compared(views: Sequence[View]) -> Compared:
    """Measure every run at its end, over the same number of iterations.

    That number is a tenth of the shortest run's, but no less than the longest of the last
    intervals; MaxVio and dead experts of a short and a long time are not the same measure.
    """
    window = max(min(v.last.iteration for v in views) // 10, max(v.last.iterations for v in views))
    common = _common(views)
    found = systems(views)
    rows = [[_row(view, window, common) for view in system.views] for system in found]
    return Compared(window=window, common=common, systems=found, rows=rows)


def spread(rows: Sequence[Row], name: str) -> Spread:
    """A figure of the runs of a system."""
    values = [row.figures.get(name, nan) for row in rows]
    known = [value for value in values if not isnan(value)]
    if not known:
        return Spread(nan, nan, nan, 0)
    return Spread(float(np.mean(known)), min(known), max(known), len(known))


def _row(view: View, window: int, common: dict[str, int]) -> Row:
    members = _members(view.intervals, window)
    whole = summed(members)
    figures = numbers(whole) | {
        "tokens_per_second": _speed(view, members),
        "parameters": float(sum(whole.run.parameters)),
        "longest_idle": longest_idle(view.intervals),
    }
    for name, made in _validated(view).items():
        last = max(made)
        figures |= {name: made[last], name.replace("_loss", "_iteration"): float(last)}
        if name in common:
            figures[f"{name}_at_common"] = made[common[name]]
    if "loss" in common:
        until = [i for i in view.intervals if i.iteration <= common["loss"]]
        losses = summed(_members(until, window)).losses
        figures["loss_at_common"] = losses.get("lm loss", nan)
    return Row(
        view=view,
        first=first_iteration(members[0]),
        last=whole.iteration,
        figures=figures,
    )


def _members(intervals: Sequence[Interval], window: int) -> list[Interval]:
    """Those of the last iterations and the last process, one at least."""
    last = intervals[-1]
    return [
        i
        for i in intervals
        if i is last or (i.run.id == last.run.id and first_iteration(i) > last.iteration - window)
    ]


def _common(views: Sequence[View]) -> dict[str, int]:
    """The last iteration of all runs' training loss, and of every set that any run has."""
    found = {"loss": [set(ends(view.intervals).tolist()) for view in views]}
    for view in views:
        for name, made in _validated(view).items():
            found.setdefault(name, []).append(set(made))
    every = {name: set.intersection(*of) for name, of in found.items()}
    return {name: max(of) for name, of in every.items() if of}


def _validated(view: View) -> dict[str, dict[int, float]]:
    """Losses by iteration, of every validation set."""
    found: dict[str, dict[int, float]] = {}
    for one in validations(view):
        found.setdefault(f"{one.of}_loss", {})[one.iteration] = one.losses["lm loss"]
    return found


def _speed(view: View, members: Sequence[Interval]) -> float:
    """Tokens a second over the intervals of which it is known."""
    kept = {id(member) for member in members}
    pairs = zip(view.intervals, tokens_per_second(view), strict=True)
    known = [(tokens(i), speed) for i, speed in pairs if id(i) in kept and speed > 0]
    seconds = sum(number / speed for number, speed in known)
    return sum(number for number, _ in known) / seconds if seconds else nan
