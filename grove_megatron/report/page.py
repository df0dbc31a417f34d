"""One HTML page that needs nothing else: figures inside it, no script, no font from elsewhere."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from ..planner.traffic import expected_distinct
from .expected import uniform_rows
from .files import write_files
from .html import cell, document, listed, origin, section, shown, shown_setting, table
from .measures import MEANINGS, TOTALS, longest_idle, numbers
from .series import first_iteration, span
from .shown import Drawn
from .view import (
    View,
    by_layout,
    layout_changes,
    processes,
    tokens_per_second,
    validations,
    when,
)


def write_report(view: View, figures: Sequence[Drawn], out: Path) -> list[Path]:
    """Write the page, and beside it every figure as ``<page>-<figure>.png``.

    Args:
        view: what it is of.
        figures: of that.
        out: the page.

    Returns:
        the files, the page first.
    """
    pngs: dict[Path, bytes] = {}
    sections = []
    for drawn in figures:
        image, png = picture(drawn, out)
        pngs |= png
        sections.append(section(drawn.title, f"<p>{escape(drawn.read)}</p>\n{image}", drawn.name))
    return write_files({out: _page(view, sections).encode()} | pngs)


def picture(drawn: Drawn, out: Path, suffix: str = "") -> tuple[str, dict[Path, bytes]]:
    """An image inside the page, and the file to be beside it; both empty without a figure."""
    if drawn.figure is None:
        return "", {}
    png = _png(drawn)
    file = out.with_name(f"{out.stem}-{drawn.name}{suffix}.png")
    data = base64.b64encode(png).decode("ascii")
    alt = escape(f"{drawn.title}. {drawn.read}", quote=True)
    return f'<img alt="{alt}" src="data:image/png;base64,{data}">', {file: png}


def _png(drawn: Drawn) -> bytes:
    from .draw import style

    target = io.BytesIO()
    assert drawn.figure is not None
    with style():
        # No time and no version in it: the same record gives the same file.
        drawn.figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def where(view: View) -> str:
    """What a history is of, in a paragraph."""
    last, intervals = view.last, view.intervals
    run, counted = last.run, sum(i.iterations for i in intervals)
    layouts = [f"{run.ranks} expert-parallel of {run.world_size} ranks"]
    for iteration, change in layout_changes(intervals).items():
        layouts.append(f"{change} after iteration {iteration}")
    return (
        f"Iterations {first_iteration(intervals[0])} to {last.iteration} ({counted} counted, in "
        f"{len(intervals)} intervals); begun {when(intervals[0].run.started)}, last report "
        f"{when(last.time)}; {len(run.layers)} MoE layers of {run.experts} experts"
        f"{f' in {run.groups} groups' if run.groups else ''}, top-{run.topk}; "
        f"{'; '.join(layouts)}."
    )


GLANCED = {
    "loss": "lm loss of the training, nats per token",
    "validation_loss": "the same of the validation set",
    "tokens_per_second": "tokens of all ranks in a second, by the clock between two reports",
    **MEANINGS,
    **TOTALS,
}
"""What is shown at a glance."""


def glance(view: View) -> tuple[dict[str, float], dict[str, float]]:
    """Numbers of the first and the last interval, or first and last known, by name."""
    first, last = (numbers(view.intervals[n]) for n in (0, -1))
    last["longest_idle"] = longest_idle(view.intervals)
    speeds = tokens_per_second(view)
    for name, known in (
        ("tokens_per_second", speeds[~np.isnan(speeds)].tolist()),
        ("validation_loss", [e.losses["lm loss"] for e in validations(view)]),
    ):
        if known:
            first[name], last[name] = known[0], known[-1]
    return first, last


def _page(view: View, sections: Sequence[str]) -> str:
    read = (
        f"<p>Means over layers, in iterations {span(view.intervals[0])} (first) and "
        f"{span(view.last)} (last); beside them what uniformly random routing of many tokens would "
        "give.</p>\n"
    )
    settings = (
        [cell(name, "name", code=True), cell(value, "value", code=True)]
        for name, value in view.last.run.settings.items()
    )
    return document(
        f"{view.name}: what the experts do",
        [
            origin(where(view)),
            *(origin(f"Also in this record: {line}.") for line in view.found),
            section("At a glance", read + _glance(view), kind="tables"),
            *sections,
            *_processes(view),
            section("Settings", table(["flag", "value"], settings), kind="tables"),
        ],
    )


def _glance(view: View) -> str:
    first, last = glance(view)
    uniform = _uniform(view)
    rows = []
    for name, meaning in GLANCED.items():
        if name in last:
            numbers = [shown(first.get(name)), shown(last[name]), uniform.get(name, "")]
            cells = [cell(number, "number") for number in numbers]
            rows.append([cell(name, "name", code=True), *cells, cell(meaning)])
    return table(["name", "first", "last", "uniform", "meaning"], rows)


def _uniform(view: View) -> dict[str, str]:
    run = view.last.run
    rows = [shown(uniform_rows(of)) for of in by_layout(view.intervals).values()]
    groups = expected_distinct(run.experts, run.topk, run.groups) if run.groups else None
    return {
        "max_vio": shown(0.0),
        "groups_per_token": shown(groups),
        "rows_per_token": " → ".join(rows),
        "pairs_per_token": shown(float(run.topk)),
        "rank_pairs_imbalance": shown(1.0),
        "rank_rows_imbalance": shown(1.0),
    }


def _processes(view: View) -> Iterable[str]:
    """What every process of the history was, where there were several."""
    found = processes(view.intervals)
    rows: list[list[str]] = []
    for process in found:
        changed = [
            f"{name} {shown_setting(then)} → {shown_setting(now)}"
            for name, (then, now) in process.changed.items()
        ]
        rows.append(
            [
                cell(process.run.id, "name", code=True),
                cell(when(process.run.started), "name"),
                cell(process.iterations, "number"),
                cell(f"EP {process.run.ranks} of {process.run.world_size}", "name"),
                listed(changed or ["nothing"] * bool(rows)),
            ]
        )
    if len(found) > 1:
        header = ["run", "begun", "iterations", "layout", "other than before"]
        yield section("Processes", table(header, rows), kind="tables")
