"""Fill the tables of the documents from the results files.

A document says where a table goes and what it is made from::

    <!-- table: results/dispatch.csv -->
    <!-- table: results/dispatch.csv as nodes -->
    <!-- table: results as summary -->
    <!-- end -->

with one of these first lines; a folder stands for all results in it, and a table is that of the
benchmark unless another is named. ``python -m grove_megatron.benchmarks.tables --write`` puts the
table between the lines, ``--check`` exits 1 if a document differs from its results. Of several runs
of one shape on one machine the latest counts.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from .cells import Line
from .layouts import LAYOUTS
from .records import Row, read_rows

_HERE = Path(__file__).resolve().parent
DOCUMENTS = (_HERE / "README.md", _HERE.parents[1] / "README.md")
_MARKED = re.compile(r"(<!-- table: (\S+)(?: as (\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)
NOTHING = "Not measured yet.\n"


def filled(text: str, folder: Path) -> str:
    """A document with its tables made anew; paths are relative to its ``folder``.

    Where nothing is to be shown, one line says so.
    """

    def fill(match: re.Match[str]) -> str:
        path = folder / match[2]
        files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
        rows = [row for file in files if file.is_file() for row in read_rows(file)]
        return match[1] + table(rows, match[3]) + match[4]

    return _MARKED.sub(fill, text)


def table(rows: Sequence[Row], layout: str | None = None) -> str:
    """Rows as a Markdown table for every machine, with a line for each of its environments.

    Args:
        rows: of one benchmark if no layout is named.
        layout: a key of :data:`LAYOUTS`.
    """
    if not rows:
        return NOTHING
    made = LAYOUTS[layout or rows[0].benchmark]
    machines: dict[tuple[object, ...], list[tuple[list[Row], Line]]] = {}
    for run in latest(rows):
        of_one = machines.setdefault(_machine(run[0]), [])
        of_one.extend((run, line) for line in made.lines(run))
    return "\n".join(_of_one(made.header, lines) for lines in machines.values() if lines) or NOTHING


def _of_one(header: Line, lines: Sequence[tuple[list[Row], Line]]) -> str:
    shown = [header, ["---"] * len(header), *(line for _, line in lines)]
    table_lines = ["| " + " | ".join(cells) + " |" for cells in shown]
    return "\n".join([*table_lines, "", *_environments([run for run, _ in lines]), ""])


def latest(rows: Sequence[Row]) -> list[list[Row]]:
    """The runs to show, each a list of rows: the last of every shape, machine and set of ranks.

    A run is known by its benchmark and its timestamp, and described by its first row.
    """
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        runs.setdefault((row.timestamp, row.benchmark), []).append(row)
    kept = {_key(runs[known][0]): runs[known] for known in sorted(runs)}
    return sorted(kept.values(), key=lambda run: _key(run[0]))


def _machine(row: Row) -> tuple[object, ...]:
    return (row.device, row.processor, row.cores)


def _key(row: Row) -> tuple[object, ...]:
    sizes = (row.hidden, row.dtype, row.experts, row.groups, row.topk, row.layers)
    widths = (row.expert_width, row.adjugate_width, row.tokens, row.ranks, row.ranks_per_node)
    return (row.benchmark, *_machine(row), row.threads, *sizes, *widths)


def _environments(runs: Sequence[Sequence[Row]]) -> list[str]:
    """Who measured what: one sentence for all runs of one machine and commit."""
    seen: dict[str, None] = {}
    for run in runs:
        row = run[0]
        seen[
            f"{row.processor}, {row.cores} cores, {row.threads} thread(s) a rank; torch "
            f"{row.torch}, megatron-core {row.megatron_core},\nPython {row.python}; commit "
            f"`{row.commit}`, {row.timestamp[:10]}."
        ] = None
    return list(seen)


def main(arguments: Sequence[str]) -> int:
    """``--write`` or ``--check``; returns an exit code."""
    if list(arguments) not in (["--write"], ["--check"]):
        print("usage: python -m grove_megatron.benchmarks.tables --write | --check")
        return 2
    different = 0
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        wanted = filled(text, document.parent)
        if wanted == text:
            continue
        different += 1
        if arguments[0] == "--write":
            document.write_text(wanted, encoding="utf-8")
        print(f"{document}: tables {'written' if arguments[0] == '--write' else 'differ'}")
    return int(different > 0 and arguments[0] == "--check")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
