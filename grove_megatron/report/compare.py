"""Two jobs on one page: the same lines in one figure, maps side by side, and what differs."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from . import draw
from .arrays import Array
from .html import cell, document, origin, section, shown, shown_setting, table
from .load_figures import load_now, load_over_time
from .page import GLANCED, glance, picture, where
from .series import edges
from .shown import Drawn, Shown
from .view import View, described, tokens_per_second, validations

_COLOURS = (draw.BLUE, draw.ORANGE)


def write_comparison(views: Sequence[View], out: Path) -> list[Path]:
    """Write the page of two jobs, and its figures beside it as PNG.

    Args:
        views: the two; they may be of models of other sizes.
        out: the page.

    Returns:
        the files, the page first.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    names = _names(views)
    every = [Shown.of(view) for view in views]
    with draw.style():
        lines = _lines(every, names)
        pairs = [[make(one, draw.HALF) for one in every] for make in (load_over_time, load_now)]
    image, files = picture(lines, out)
    sections = [section(lines.title, f"<p>{escape(lines.read)}</p>\n{image}", lines.name)]
    for pair in pairs:
        cells = []
        for drawn, name, side in zip(pair, names, "ab", strict=True):
            html, written = picture(drawn, out, f"-{side}")
            files += written
            cells.append(f"<div><p>{escape(name)}</p>\n{html}</div>")
        both = f'<p>{escape(pair[0].read)}</p>\n<div class="pair">{"".join(cells)}</div>'
        sections.append(section(pair[0].title, both, pair[0].name))
    found = [(name, line) for name, view in zip(names, views, strict=True) for line in view.found]
    page = document(
        f"{' and '.join(names)}: what the experts do",
        [
            *(origin(where(view), name) for name, view in zip(names, views, strict=True)),
            *(origin(f"also in this record: {line}", name) for name, line in found),
            section("At a glance", _glance(views, names), kind="tables"),
            *sections,
            section("Settings that differ", _settings(views, names), kind="tables"),
        ],
    )
    out.write_text(page, encoding="utf-8")
    return [out, *files]


def _names(views: Sequence[View]) -> list[str]:
    """Of the jobs; told apart where they have the same."""
    names = [view.name for view in views]
    if names[0] == names[1]:
        return [f"{name} ({view.last.run.id})" for name, view in zip(names, views, strict=True)]
    return names


def _glance(views: Sequence[View], names: Sequence[str]) -> str:
    last = [glance(view)[1] for view in views]
    rows = []
    for name, meaning in GLANCED.items():
        if any(name in numbers for numbers in last):
            cells = [cell(shown(numbers.get(name)), "number") for numbers in last]
            rows.append([cell(name, "name", code=True), *cells, cell(meaning)])
    read = "<p>Means over layers in the last interval of each.</p>\n"
    return read + table(["name", *names, "meaning"], rows)


def _settings(views: Sequence[View], names: Sequence[str]) -> str:
    settings = [described(view.last.run) for view in views]
    rows = []
    for name in dict.fromkeys(name for one in settings for name in one):
        values = [one.get(name) for one in settings]
        if values[0] != values[1]:
            cells = [cell(shown_setting(value), "value", code=True) for value in values]
            rows.append([cell(name, "name", code=True), *cells])
    return table(["flag", *names], rows) if rows else "<p>None of those that are recorded.</p>"


def _measure(name: str) -> Callable[[Shown], Array]:
    def values(one: Shown) -> Array:
        none = np.full((len(one.intervals), 1), np.nan)
        return one.measures.get(name, none)

    return values


def _loss(one: Shown) -> Array:
    return np.array([[i.losses.get("lm loss", np.nan)] for i in one.intervals])


def _dead(one: Shown) -> Array:
    return np.nansum(one.measures["dead_experts"], 1, keepdims=True)


# Title, values of a job [intervals, layers or 1], and what its axis shows at least.
_PANELS: tuple[tuple[str, Callable[[Shown], Array], Callable[[Axes], None]], ...] = (
    ("lm loss, nats per token", _loss, lambda axes: draw.around(axes, 0.01)),
    ("MaxVio of the experts", _measure("max_vio"), lambda axes: draw.from_zero(axes, 0.5)),
    ("dead experts, all layers", _dead, lambda axes: draw.from_zero(axes, 2)),
    ("groups per token", _measure("groups_per_token"), lambda axes: draw.around(axes, 0.1)),
    ("rows per token and layer", _measure("rows_per_token"), draw.from_zero),
    (
        "routed pairs of a rank, most / mean",
        _measure("rank_pairs_imbalance"),
        lambda axes: draw.at_least(axes, 1, 1.25),
    ),
    ("RMS of the expert bias", _measure("bias_rms"), lambda axes: draw.from_zero(axes, 0.01)),
)


def _lines(every: Sequence[Shown], names: Sequence[str]) -> Drawn:
    """A panel for every number, a colour for every job."""
    fig = draw.figure(12.0)
    grid = fig.subplots(4, 2)
    *panels, speeds = grid.flat
    for one, name, colour in zip(every, names, _COLOURS, strict=True):
        view = one.view
        for axes, (_, values, _) in zip(panels, _PANELS, strict=True):
            draw.band(axes, one.intervals, values(one), colour, name)
        draw.line(speeds, view.intervals, tokens_per_second(view), colour, name)
        made = validations(view)
        iterations, losses = [e.iteration for e in made], [e.losses["lm loss"] for e in made]
        panels[0].plot(iterations, losses, color=colour, linestyle=":", marker="o", markersize=4)
    for axes, (title, _, room) in zip(panels, _PANELS, strict=True):
        _finish(axes, every, title)
        room(axes)
    _finish(speeds, every, "tokens per second")
    draw.from_zero(speeds)
    draw.legend(panels[0])
    read = (
        f"Blue: {names[0]}; orange: {names[1]}. Means over layers, and their range; points of the "
        "loss are those of the validation set. Where a number does not apply to a job it has no "
        "line."
    )
    return Drawn("lines", "Side by side", read, fig)


def _finish(axes: Axes, every: Sequence[Shown], title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("iteration")
    ends = [edges(one.intervals) for one in every]
    axes.set_xlim(min(e[0] for e in ends), max(e[-1] for e in ends))
