"""Results as rows of a CSV file: one value, with all that is needed to measure it again."""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .environment import Environment
from .harness import Samples
from .shape import Settings, Shape


@dataclass(frozen=True, kw_only=True)
class Value:
    """One measured quantity of one variant: percentiles over ``iterations`` measurements.

    ``shape`` is that of this value, where a benchmark measures more than one.
    """

    variant: str
    kernel: str
    quantity: str
    unit: str
    p20: float
    p50: float
    p80: float
    iterations: int
    shape: Shape | None = None
    ranks: int | None = None

    @classmethod
    def milliseconds(cls, variant: str, kernel: str, seconds: Samples, **where: object) -> "Value":
        """A time, from samples in seconds; ``where`` are further fields."""
        p20, p50, p80 = (_rounded(seconds.at(p) * 1000) for p in (20, 50, 80))
        count = len(seconds.values)
        common = {"variant": variant, "kernel": kernel, "quantity": "time", "unit": "ms"}
        return cls(**(common | where), p20=p20, p50=p50, p80=p80, iterations=count)  # type: ignore[arg-type]

    @classmethod
    def once(
        cls, variant: str, kernel: str, quantity: str, unit: str, number: float, **where: object
    ) -> "Value":
        """A count or a ratio, which does not scatter."""
        number = _rounded(number)
        common = {"variant": variant, "kernel": kernel, "quantity": quantity, "unit": unit}
        return cls(**(common | where), p20=number, p50=number, p80=number, iterations=1)  # type: ignore[arg-type]


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a results file.

    ``timestamp`` is when the benchmark ended, in UTC; rows of one run share it. ``ranks`` are
    expert-parallel processes with ``threads`` CPU threads each, ``cores`` what they may use;
    ``ranks_per_node`` is 0 where nodes were not told apart.
    """

    timestamp: str
    benchmark: str
    preset: str
    tokens: int
    hidden: int
    experts: int
    groups: int
    topk: int
    expert_width: int
    adjugate_width: int
    layers: int
    dtype: str
    variant: str
    kernel: str
    quantity: str
    unit: str
    p20: float
    p50: float
    p80: float
    iterations: int
    ranks: int
    ranks_per_node: int
    threads: int
    device: str
    processor: str
    cores: int
    torch: str
    megatron_core: str
    python: str
    commit: str


COLUMNS = tuple(f.name for f in fields(Row))
_TYPES = {f.name: f.type for f in fields(Row)}


def rows_of(settings: Settings, environment: Environment, values: Iterable[Value]) -> list[Row]:
    """Values with where they come from."""
    rows = []
    for value in values:
        measured = asdict(value)
        shape = asdict(value.shape or settings.shape)
        del measured["shape"]
        measured["ranks"] = value.ranks or settings.ranks
        common = {
            "benchmark": settings.benchmark,
            "preset": settings.preset,
            "ranks_per_node": settings.ranks_per_node or 0,
            "threads": settings.threads,
        }
        rows.append(Row(**common, **shape, **measured, **asdict(environment)))  # type: ignore[arg-type]
    return rows


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a file, with a header where it has none; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow(COLUMNS)
        writer.writerows([asdict(row).values() for row in rows])


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that :func:`append_rows` wrote.

    Raises:
        ValueError: it has other columns.
    """
    if found := csv_problems(path):
        raise ValueError("; ".join(found))
    with path.open(newline="", encoding="utf-8") as file:
        return [_row(line) for line in csv.DictReader(file)]


def _row(line: dict[str, str]) -> Row:
    convert = {int: int, float: float, str: str}
    return Row(**{name: convert[_TYPES[name]](line[name]) for name in COLUMNS})  # type: ignore[index]


def csv_problems(path: Path) -> list[str]:
    """Why rows cannot be added to this file, one line each."""
    if path.is_dir():
        return [f"--csv ({path}) is a folder, not a file; name a file"]
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        header = next(csv.reader(file), None)
    if header is not None and tuple(header) != COLUMNS:
        shown = ",".join(header)
        return [
            f"--csv ({path}) has columns ({shown}) other than ({','.join(COLUMNS)}); name another "
            "file"
        ]
    return []
