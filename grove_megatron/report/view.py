"""What one report is of: the history of a run, with its name, and how its layout changed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import Array
from .record import FOLDER, Evaluation, Interval, Run, find_record, read_record
from .series import of_one_model, span_of


@dataclass(frozen=True, kw_only=True)
class View:
    """A history to draw.

    Attributes:
        name: of the job, to be read.
        intervals: of one model, by iteration.
        evaluations: of the same runs.
        found: what else the record holds, one line each.
        place: where it was read.
    """

    name: str
    intervals: Sequence[Interval]
    evaluations: Sequence[Evaluation] = ()
    found: Sequence[str] = ()
    place: Path | None = None

    @classmethod
    def of(cls, place: Path, run_id: str | None = None) -> "View":
        """Read the record of a folder.

        Raises:
            ValueError: see :func:`find_record` and :func:`read_record`.
        """
        file = find_record(place)
        record = read_record(file, run_id)
        intervals = of_one_model(record)
        found = list(record.found)
        if other := len(record.intervals) - len(intervals):
            found.append(f"{other} intervals of a model of other sizes are left out")
        drawn = {interval.run.id for interval in intervals}
        return cls(
            name=_name(file, intervals[-1].run),
            intervals=intervals,
            evaluations=[e for e in record.evaluations if e.run.id in drawn],
            found=found,
            place=place,
        )

    @property
    def last(self) -> Interval:
        return self.intervals[-1]


def _name(file: Path, run: Run) -> str:
    """What people call the job: as W&B does, else its folder."""
    folder = file.resolve().parent
    folder = folder.parent if folder.name == FOLDER else folder
    return str(run.settings.get("wandb-exp-name") or folder.name or file.name)


@dataclass(frozen=True)
class Process:
    """What one process trained of a history.

    Attributes:
        run: it.
        iterations: the first and last it counted, as they are written.
        changed: what is other than in the process before, by flag: then and now.
    """

    run: Run
    iterations: str
    changed: dict[str, tuple[Any, Any]]


def processes(intervals: Sequence[Interval]) -> list[Process]:
    """The processes of a history, in order, each with what changed."""
    found: list[Process] = []
    for _, group in groupby(intervals, key=lambda interval: interval.run.id):
        own = list(group)
        run = own[0].run
        before = found[-1].run if found else run
        then, now = described(before), described(run)
        changed = {
            name: (then.get(name), now.get(name))
            for name in {**then, **now}
            if then.get(name) != now.get(name)
        }
        found.append(Process(run, span_of(own), changed))
    return found


def described(run: Run) -> dict[str, Any]:
    """The settings of a run by flag, with the layout that the record itself is sure of."""
    return run.settings | {
        "expert-model-parallel-size": run.ranks,
        "moe-token-dispatcher-type": run.dispatcher,
        "world-size": run.world_size,
    }


def layout_changes(intervals: Sequence[Interval]) -> dict[int, str]:
    """After which iterations another layout went on, and what it was: ``EP 2 → 1``."""
    return {
        a.iteration: change for a, b in pairwise(intervals) if (change := _change(a.run, b.run))
    }


def _change(then: Run, now: Run) -> str:
    """The first of these that changed; the rest follows from it mostly."""
    for name, field in (("EP", "ranks"), ("ranks", "world_size"), ("", "dispatcher")):
        before, after = getattr(then, field), getattr(now, field)
        if before != after:
            return f"{name} {before} → {after}".strip()
    return ""


def by_layout(intervals: Sequence[Interval]) -> dict[str, Run]:
    """A run of every layout that sends rows in its own way, in order: ``{"EP 2": ...}``."""
    found: dict[str, Run] = {}
    for interval in intervals:
        run = interval.run
        sent = "" if run.dispatcher == "alltoall" else f", {run.dispatcher}"
        found.setdefault(f"EP {run.ranks}{sent}", run)
    return found


def validations(view: View) -> list[Evaluation]:
    """The evaluations of validation sets that have a loss of the language model."""
    return [e for e in view.evaluations if e.of != "test" and "lm loss" in e.losses]


def tokens_per_second(view: View) -> Array:
    """Of every interval, evaluations left out and saving included; NaN where it is not known.

    Between two reports of one process: that of its first has no beginning.
    """
    speeds = [np.nan]
    for a, b in pairwise(view.intervals):
        whole = b.iteration - b.iterations == a.iteration and a.run.id == b.run.id
        evaluating = sum(e.seconds for e in view.evaluations if a.time < e.time <= b.time)
        seconds = b.time - a.time - evaluating
        speeds.append(tokens(b) / seconds if whole and seconds > 0 else np.nan)
    return np.array(speeds)


def tokens(interval: Interval) -> int:
    """That the model was trained on, padding included: those of a layer that ran once for each."""
    return int(interval.sent_tokens.min())


def when(seconds: float) -> str:
    """A time of the record, as it is written."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
