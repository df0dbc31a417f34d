"""What a benchmark found: rows for the CSV file, a table for the reader, JSON for scripts."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from .records import Row, Value


@dataclass(frozen=True, kw_only=True)
class Table:
    """A line above it, its header, and its lines."""

    title: str
    header: tuple[str, ...]
    lines: Sequence[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a benchmark measured.

    Attributes:
        values: for the CSV file.
        summary: of the JSON object; None where a quantity does not apply.
        tables: for the reader.
        notes: sentences below them.
    """

    values: Sequence[Value]
    summary: Mapping[str, float | None]
    tables: Sequence[Table]
    notes: Sequence[str] = field(default_factory=list)


def show(findings: Findings, rows: Sequence[Row], as_json: bool) -> None:
    """Print the tables; with ``as_json`` they go to stderr, and the JSON object ends stdout."""
    from rich.console import Console
    from rich.table import Table as Drawn

    terminal = sys.stderr if as_json else sys.stdout
    console = Console(stderr=as_json, width=None if terminal.isatty() else 118)
    for table in findings.tables:
        drawn = Drawn()
        for i, name in enumerate(table.header):
            drawn.add_column(name, justify="right" if i else "left")
        for line in table.lines:
            drawn.add_row(*line)
        console.print(table.title, highlight=False)
        console.print(drawn)
    for note in findings.notes:
        console.print(note, highlight=False)
    if as_json:
        shown = {**findings.summary, "rows": [asdict(row) for row in rows]}
        print(json.dumps(shown), flush=True)


def spread(value: Value | Row, digits: int = 1) -> str:
    """Median with the 20th and 80th percentile."""
    p50, p20, p80 = (f"{p:.{digits}f}" for p in (value.p50, value.p20, value.p80))
    return f"{p50} ({p20}-{p80})"
