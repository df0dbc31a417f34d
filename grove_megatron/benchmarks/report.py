"""What a benchmark found: rows for the CSV file, a table for the reader, JSON for scripts."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from .records import Row, Value


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a benchmark measured.

    Attributes:
        values: for the CSV file.
        summary: of the JSON object; None where a quantity does not apply.
        title: a line above the table.
        header, lines: of the table.
        notes: sentences below the table.
    """

    values: Sequence[Value]
    summary: Mapping[str, float | None]
    title: str
    header: tuple[str, ...]
    lines: Sequence[tuple[str, ...]]
    notes: Sequence[str] = field(default_factory=list)


def show(findings: Findings, rows: Sequence[Row], as_json: bool) -> None:
    """Print the table; with ``as_json`` it goes to stderr, and the JSON object ends stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for i, name in enumerate(findings.header):
        table.add_column(name, justify="right" if i else "left")
    for line in findings.lines:
        table.add_row(*line)
    terminal = sys.stderr if as_json else sys.stdout
    console = Console(stderr=as_json, width=None if terminal.isatty() else 118)
    console.print(findings.title, highlight=False)
    console.print(table)
    for note in findings.notes:
        console.print(note, highlight=False)
    if as_json:
        shown = {**findings.summary, "rows": [asdict(row) for row in rows]}
        print(json.dumps(shown), flush=True)


def spread(value: Value) -> str:
    """Median with the 20th and 80th percentile."""
    return f"{value.p50:.1f} ({value.p20:.1f}-{value.p80:.1f})"
