"""``grove bench import``: rows that another machine has measured, beside those that are there."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path

from ..layouts import LAYOUTS
from ..records import Row, append_rows, read_rows

RESULTS = Path(__file__).resolve().parents[1] / "results"
_MAY_BE_EMPTY = {"kernel", "variant"}
Run = tuple[str, str]


def import_rows(folder: Path, into: Path = RESULTS, *, cpu: bool = False) -> list[str]:
    """Add the rows of all CSV files of a folder to those of their benchmarks; all or none.

    A run, known by its benchmark and its time, that is there already is passed over.

    Args:
        folder: that ``run.sh`` has written.
        into: with a file ``<benchmark>.csv`` for each.
        cpu: rows of a CPU too, where the kit runs tiny shapes.

    Returns:
        What was done, a line each.

    Raises:
        ValueError: a file or a row is not one that ``grove bench`` writes, or there is none; every
            problem at once.
    """
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise ValueError(f"folder ({folder}) has no CSV files; name one that run.sh has written")
    rows, problems = [], []
    for file in files:
        if not file.read_bytes().endswith(b"\n"):
            problems.append(f"file ({file.name}) ends within a line; copy it again")
            continue
        try:
            found = read_rows(file)
        except (ValueError, TypeError, KeyError) as error:
            problems.append(f"file ({file.name}) cannot be read ({error}); copy it again")
            continue
        for number, row in enumerate(found, start=2):
            problems += [f"file ({file.name}), line ({number}): {text}" for text in _problems(row)]
        if not cpu and any(row.device == "cpu" for row in found):
            problems.append(
                f"file ({file.name}) has rows of a CPU, where the kit runs tiny shapes; give --cpu "
                "if they are to be among the results"
            )
        rows += found
    there = {_run(row) for path in into.glob("*.csv") for row in read_rows(path)}
    new = [row for row in rows if _run(row) not in there]
    if twice := sorted({_what(row) for row, count in Counter(new).items() if count > 1}):
        problems.append(f"rows ({', '.join(twice)}) are there twice; copy the folder again")
    if problems:
        raise ValueError("; ".join(problems))
    _write(new, into)
    return [*_lines(rows, new, into)]


def _run(row: Row) -> Run:
    return row.benchmark, row.timestamp


def _what(row: Row) -> str:
    return " ".join(filter(None, (row.benchmark, row.variant, row.kernel, row.quantity)))


def _problems(row: Row) -> Iterator[str]:
    if row.benchmark not in LAYOUTS:
        yield f"benchmark ({row.benchmark}) is not one of ({', '.join(sorted(LAYOUTS))})"
    if row.device not in ("cpu", "cuda"):
        yield f"device ({row.device}) is not one of (cpu, cuda)"
    empty = [f.name for f in fields(Row) if getattr(row, f.name) == ""]
    if lost := [name for name in empty if name not in _MAY_BE_EMPTY]:
        yield f"({', '.join(lost)}) is empty"
    if not row.p20 <= row.p50 <= row.p80 or not all(map(math.isfinite, (row.p20, row.p80))):
        yield f"p20 ({row.p20}), p50 ({row.p50}) and p80 ({row.p80}) are not in order"
    if row.iterations < 1:
        yield f"iterations ({row.iterations}) is below (1)"
    try:
        aware = datetime.fromisoformat(row.timestamp).tzinfo is not None
    except ValueError:
        aware = False
    if not aware:
        yield f"timestamp ({row.timestamp}) is no time with its zone"


def _write(rows: Sequence[Row], into: Path) -> None:
    """Every file beside its old one first; then all take their places."""
    written = []
    into.mkdir(parents=True, exist_ok=True)
    try:
        for benchmark in dict.fromkeys(row.benchmark for row in rows):
            place = into / f"{benchmark}.csv"
            beside = place.with_suffix(".new")
            written.append((beside, place))
            beside.write_bytes(place.read_bytes() if place.is_file() else b"")
            append_rows(beside, [row for row in rows if row.benchmark == benchmark])
    except BaseException:
        for beside, _ in written:
            beside.unlink(missing_ok=True)
        raise
    for beside, place in written:
        os.replace(beside, place)


def _lines(rows: Sequence[Row], new: Sequence[Row], into: Path) -> Iterator[str]:
    counts: dict[tuple[Run, str], int] = {}
    added = {_run(row) for row in new}
    for row in rows:
        where = "the CPU, " if row.device == "cpu" else ""
        key = _run(row), f"{where}{row.processor}, torch {row.torch}, commit {row.commit}"
        counts[key] = counts.get(key, 0) + 1
    for ((benchmark, time), who), count in counts.items():
        if (benchmark, time) in added:
            yield f"{count} rows to {into / benchmark}.csv: {time}, {who}"
        else:
            yield f"{count} rows of {benchmark} at {time} are there already: {who}"
