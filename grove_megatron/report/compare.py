"""Jobs on one page: a table of systems, their lines in one figure, and what differs."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from . import draw
from .compared import Compared, Row, spread
from .files import write_files
from .html import cell, document, origin, section, shown, spread_cell, table
from .lines import Curve, lines
from .load_figures import load_now, load_over_time
from .page import GLANCED, picture, where
from .shown import Shown
from .systems import differing, run_names
from .table import explained, html_table, markdown_table, written

_FEW = 2
"""Runs whose maps and ranges over layers have room side by side."""

Group = tuple[str, Sequence[Row]]
"""A column of the page: a system, or of few runs one."""


def write_comparison(of: Compared, out: Path) -> list[Path]:
    """Write the page, and beside it the table as Markdown and the figures as PNG.

    Args:
        of: two runs at least; they may be of models of other sizes.
        out: the page.

    Returns:
        the files, the page first.
    """
    rows = of.every_row
    names = run_names([row.view for row in rows])
    every = {id(row): Shown.of(row.view) for row in rows}
    few = len(rows) <= _FEW
    groups: list[Group] = [(name, [row]) for name, row in zip(names, rows, strict=True)]
    if not few:
        groups = [(s.name, own) for s, own in zip(of.systems, of.rows, strict=True)]
    curves = [Curve(name, [every[id(row)] for row in own]) for name, own in groups]
    with draw.style():
        drawn = lines(curves, layers=few)
    image, pngs = picture(drawn, out)
    sections = [section(drawn.title, f"<p>{escape(drawn.read)}</p>\n{image}", drawn.name)]
    if few:
        maps, more = _maps(curves, out)
        sections += maps
        pngs |= more
    labels = [_label(name, row) for name, own in groups for row in own]
    labelled = zip(names if few else labels, rows, strict=True)
    runs = [line for label, row in labelled for line in _origins(label, row)]
    many = f"{len(rows)} runs of {len(groups)} system{'s' if len(groups) > 1 else ''}"
    page = document(
        f"{' and '.join(names) if few else many}: what the experts do",
        [
            *(runs if few else []),
            section(
                "At a glance", f"<p>{escape(explained(of))}</p>\n{html_table(of)}", kind="tables"
            ),
            *sections,
            section("All figures", _figures(groups), kind="tables"),
            section("Settings that differ", _settings(groups), kind="tables"),
            *([] if few else [section("Runs", "\n".join(runs), kind="tables")]),
        ],
    )
    contents = {out: page.encode(), out.with_suffix(".md"): markdown_table(of).encode()}
    return write_files(contents | pngs)


def _label(system: str, row: Row) -> str:
    """Of a run among many."""
    seed = [] if row.seed is None else [f"seed {row.seed}"]
    return ", ".join([system, row.view.name, *seed, f"run {row.view.last.run.id}"])


def _origins(name: str, row: Row) -> list[str]:
    found = [origin(f"also in this record: {line}", name) for line in row.view.found]
    return [origin(where(row.view), name), *found]


def _maps(curves: Sequence[Curve], out: Path) -> tuple[list[str], dict[Path, bytes]]:
    """Of every run, side by side."""
    sections: list[str] = []
    pngs: dict[Path, bytes] = {}
    for make in (load_over_time, load_now):
        with draw.style():
            pair = [make(curve.runs[0], draw.HALF) for curve in curves]
        cells = []
        for drawn, curve, side in zip(pair, curves, "ab", strict=True):
            html, png = picture(drawn, out, f"-{side}")
            pngs |= png
            cells.append(f"<div><p>{escape(curve.name)}</p>\n{html}</div>")
        both = f'<p>{escape(pair[0].read)}</p>\n<div class="pair">{"".join(cells)}</div>'
        sections.append(section(pair[0].title, both, pair[0].name))
    return sections, pngs


def _figures(groups: Sequence[Group]) -> str:
    known = {name for _, own in groups for row in own for name in row.figures}
    rows = []
    for name, meaning in GLANCED.items():
        if name in known:
            cells = [spread_cell(*written(spread(own, name), shown, len(own))) for _, own in groups]
            rows.append([cell(name, "name", code=True), *cells, cell(meaning)])
    read = "<p>Means over layers, of the same iterations.</p>\n"
    return read + table(["name", *(name for name, _ in groups), "meaning"], rows)


def _settings(groups: Sequence[Group]) -> str:
    """The values of every system, or the flags of every system where these are more."""
    values = differing([row.view for _, own in groups for row in own])
    if not values:
        return "<p>None of those that are recorded.</p>"
    columns, begin = {}, 0
    for name, own in groups:
        part = slice(begin, begin := begin + len(own))
        columns[name] = [", ".join(dict.fromkeys(of[part])) for of in values.values()]
    if len(groups) > max(_FEW, len(values)):
        rows = [
            [cell(name, "value"), *(cell(v, "value", code=True) for v in of)]
            for name, of in columns.items()
        ]
        return table(["system", *values], rows)
    rows = [
        [cell(name, "name", code=True), *(cell(v, "value", code=True) for v in of)]
        for name, *of in zip(values, *columns.values(), strict=True)
    ]
    return table(["setting", *columns], rows)
