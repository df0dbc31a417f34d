"""Fill the tables of the documents from the results files.

A document says where a table goes and what it is made from::

    <!-- table: results/dispatch.csv -->
    <!-- end -->

``python -m grove_megatron.benchmarks.tables --write`` puts the table between the two lines,
``--check`` exits 1 if a document differs from its results. Of several runs of one shape on one
machine the latest counts.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from .layouts import lines_of
from .records import Row, read_rows

_HERE = Path(__file__).resolve().parent
DOCUMENTS = (_HERE / "README.md", _HERE.parents[1] / "README.md")
_MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOTHING = "Not measured yet.\n"


def filled(text: str, folder: Path) -> str:
    """A document with its tables made anew; paths are relative to its ``folder``.

    A results file that does not exist leaves one line that says so.
    """

    def fill(match: re.Match[str]) -> str:
        path = folder / match[2]
        return match[1] + (table(read_rows(path)) if path.is_file() else NOTHING) + match[3]

    return _MARKED.sub(fill, text)


def table(rows: Sequence[Row]) -> str:
    """Rows of one benchmark as a Markdown table, and a line for each environment."""
    runs = latest(rows)
    header, lines = lines_of(runs)
    shown = [header, ["---"] * len(header), *lines]
    table_lines = ["| " + " | ".join(cells) + " |" for cells in shown]
    return "\n".join([*table_lines, "", *_environments(runs), ""])


def latest(rows: Sequence[Row]) -> list[list[Row]]:
    """The runs to show, each a list of rows: the last of every shape, machine and set of ranks.

    A run is known by its timestamp and described by its first row.
    """
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row.timestamp, []).append(row)
    kept: dict[tuple[object, ...], list[Row]] = {}
    for timestamp in sorted(runs):
        run = runs[timestamp]
        kept[_key(run[0])] = run
    return sorted(kept.values(), key=lambda run: _key(run[0]))


def _key(row: Row) -> tuple[object, ...]:
    machine = (row.device, row.processor, row.cores, row.threads)
    sizes = (row.hidden, row.dtype, row.experts, row.groups, row.topk, row.layers)
    widths = (row.expert_width, row.adjugate_width, row.tokens, row.ranks)
    return (row.benchmark, *machine, *sizes, *widths)


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
