"""The table of a comparison: a row for every system, as HTML and as Markdown."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan

from .compared import Compared, Row, Spread, spread
from .html import cell, shown, spread_cell, table

_NONE = "–"


@dataclass(frozen=True)
class Column:
    """One figure of the table.

    Attributes:
        name: of the figure.
        title: of the column.
        show: how a number is written.
    """

    name: str
    title: str
    show: Callable[[float], str]


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def columns(of: Compared) -> list[Column]:
    """Those that the comparison needs; losses at a common iteration where runs end apart."""
    found = [Column("loss", "training loss", _loss), *_at_common(of, "loss", "training loss")]
    for name in of.names():
        if name.endswith("_loss") and name.startswith("validation"):
            title = name.replace("_", " ")
            found += [Column(name, title, _loss), *_at_common(of, name, title)]
    found += [
        Column("max_vio", "MaxVio", shown),
        Column("dead_experts_total", "dead experts", shown),
        Column("pairs_per_token", "pairs per token", shown),
        Column("rows_per_token", "rows per token", shown),
        Column("dropped_share", "dropped share", shown),
        Column("dropped", "dropped", shown),
        Column("tokens_per_second", "tokens/s", _whole),
        Column("parameters", "parameters", _whole),
        Column("active_parameters", "active", _whole),
    ]
    # Where pairs cannot be dropped the measure is absent.
    optional = {"dropped_share", "dropped"} - set(of.names())
    return [column for column in found if column.name not in optional]


def _at_common(of: Compared, name: str, title: str) -> list[Column]:
    """Beside a loss that runs have last at other iterations: where it was made, and one of all."""
    at = name.replace("_loss", "_iteration")
    made = {row.last if name == "loss" else row.figures.get(at) for row in of.every_row}
    if len(made - {None}) == 1:
        return []
    # The last iteration of the training loss is a column of every table.
    found = [] if name == "loss" else [Column(at, "at iteration", _whole)]
    if name in of.common:
        found.append(Column(f"{name}_at_common", f"{title} at {of.common[name]:,}", _loss))
    return found


def explained(of: Compared) -> str:
    """What the numbers of the table are of."""
    texts = [
        f"Figures are of the last {of.window:,} iterations of every run, as far as its intervals "
        "allow, counted as one: MaxVio is the mean over layers, dead are the experts of all layers "
        "without a token in these iterations. Losses are nats per token, those of validation sets "
        "the last that were made.",
    ]
    if any(len(rows) > 1 for rows in of.rows):
        texts.append("Several seeds: their mean (lowest..highest).")
    for system, rows in zip(of.systems, of.rows, strict=True):
        seeds = [row.seed for row in rows if row.seed is not None]
        if again := sorted({str(seed) for seed in seeds if seeds.count(seed) > 1}):
            texts.append(f"{system.name}: several runs have the same seed ({', '.join(again)}).")
    if "loss" not in of.common:
        texts.append("No iteration was reported by all runs, so no loss is of a common one.")
    return " ".join(texts)


def html_table(of: Compared) -> str:
    """Ranges below their means."""
    shown_columns = columns(of)
    rows = [
        [
            cell(system.name, "value"),
            cell(len(rows), "number"),
            cell(_iterations(rows), "number"),
            *(spread_cell(*of_column) for of_column in _row(rows, shown_columns)),
        ]
        for system, rows in zip(of.systems, of.rows, strict=True)
    ]
    return table(["system", "seeds", "iteration", *(c.title for c in shown_columns)], rows)


def markdown_table(of: Compared) -> str:
    """The table and what its numbers are of, to be pasted."""
    shown_columns = columns(of)
    titles = ["system", "seeds", "iteration", *(column.title for column in shown_columns)]
    lines = [titles, [":--", *["--:"] * (len(titles) - 1)]]
    for system, rows in zip(of.systems, of.rows, strict=True):
        figures = [" ".join(filter(None, one)) for one in _row(rows, shown_columns)]
        lines.append([_plain(system.name), str(len(rows)), _iterations(rows), *figures])
    made = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{made}\n\n{_plain(explained(of))}\n"


def written(found: Spread, show: Callable[[float], str], seeds: int) -> tuple[str, str]:
    """The mean, and in brackets the range and how many seeds have it, where that says more."""
    if isnan(found.mean):
        return _NONE, ""
    low, high = show(found.low), show(found.high)
    notes = [] if low == high else [f"{low}..{high}"]
    if found.count < seeds:
        notes.append(f"of {found.count}")
    return show(found.mean), f"({', '.join(notes)})" if notes else ""


def _row(rows: Sequence[Row], of: Sequence[Column]) -> list[tuple[str, str]]:
    found = [(column, spread(rows, column.name)) for column in of]
    return [
        # The mean of iterations is none.
        (_range(one.low, one.high), "")
        if column.name.endswith("_iteration") and one.count
        else written(one, column.show, len(rows))
        for column, one in found
    ]


def _iterations(rows: Sequence[Row]) -> str:
    """Which the rows end at, and which the runs are to end at if they are not there yet."""
    ends = [row.last for row in rows]
    planned = max(row.train_iterations or 0 for row in rows)
    text = _range(min(ends), max(ends))
    return f"{text} of {planned:,}" if min(ends) < planned else text


def _range(low: float, high: float) -> str:
    return _whole(low) if low == high else f"{_whole(low)}..{_whole(high)}"


def _plain(text: str) -> str:
    """In Markdown, text whatever is in it."""
    return re.sub(r"([\\`*\[\]<>|$])", r"\\\1", " ".join(text.split()))
