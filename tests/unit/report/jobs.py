"""Records of made-up jobs, and the command that draws them."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from click.testing import Result
from typer import Typer
from typer.testing import CliRunner

from grove_megatron.report.command import report
from grove_megatron.report.record import Evaluation, Interval, Run, Writer
from grove_megatron.report.view import View
from tests.unit.report.intervals import RUN, a_training, interval


def grove_report(*arguments: object) -> Result:
    app = Typer()
    app.command()(report)
    return CliRunner().invoke(app, [str(a) for a in arguments])


def recorded(folder: Path, run: Run, number: int, tokens: int = 40) -> Path:
    return written(folder, run, a_training(run, number, tokens))


def written(folder: Path, run: Run, intervals: Iterable[Interval]) -> Path:
    writer = Writer(folder)
    writer.run(run)
    for one in intervals:
        writer.interval(one)
    return folder


def a_run(run_id: str = "a", *, sizes: Any = None, **settings: Any) -> Run:
    """A run with these settings, ``_`` for ``-``."""
    given = {name.replace("_", "-"): value for name, value in settings.items()}
    return replace(RUN, id=run_id, settings=RUN.settings | given, **(sizes or {}))


def a_view(
    name: str,
    losses: Iterable[float] = (3.0,),
    *,
    run: Run = RUN,
    every: int = 10,
    validation: dict[int, float] | None = None,
) -> View:
    """Of a job that reported these losses every so many iterations, a second for each."""
    intervals = [
        interval(
            run=run, iteration=every * n, iterations=every, time=n * every, losses={"lm loss": loss}
        )
        for n, loss in enumerate(losses, 1)
    ]
    made = [
        Evaluation(
            run=run, iteration=at, of="validation", time=at, seconds=0.0, losses={"lm loss": loss}
        )
        for at, loss in (validation or {}).items()
    ]
    return View(name=name, intervals=intervals, evaluations=made)
