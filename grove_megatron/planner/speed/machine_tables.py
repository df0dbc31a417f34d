"""The tables of a cluster's file: what each must have, and what is wrong with one."""

from collections.abc import Iterator
from typing import Any

from ...checks.problem import UNSAID, Problem

COLUMNS: dict[str, tuple[str, ...]] = {
    "matmul": ("in", "out"),
    "attention": ("seq_length",),
    "collective": ("operation", "ranks", "nodes", "algorithm", "busbw_gb_s"),
    "collective_fit": ("operation", "share", "latency_us", "fixed_us"),
    "dispatch": ("ranks", "dispatch_gb_s", "combine_gb_s"),
    "memory_bound": (),
}
"""Columns that a table of a name cannot do without."""
# Keys that stand beside them.
_KEYS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "matmul": {"precision": str, "peak_tflops": (int, float)},
    "attention": {"implementation": str},
    "dispatch": {"bytes_of": str},
}
_WORDS = {"operation", "algorithm", "backend"}


def table_problems(said: dict[str, Any]) -> Iterator[Problem]:
    """Of all tables of a file.

    Args:
        said: the file.
    """
    for name in COLUMNS:
        tables = said.get(name, [])
        if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
            text = f"is not a table; write [[{name}]] with columns and rows"
            yield Problem(name, tables, text)
            continue
        for number, table in enumerate(tables, 1):
            where = f"[[{name}]]" if len(tables) == 1 else f"[[{name}]] {number}"
            yield from _of_one(where, name, table)


def _of_one(where: str, name: str, table: dict[str, Any]) -> Iterator[Problem]:
    columns, rows = table.get("columns"), table.get("rows")
    for key, kind in _KEYS.get(name, {}).items():
        if not isinstance(table.get(key), kind):
            yield Problem(where, UNSAID, f"lacks {key}, or has no such value; add it")
    if not (isinstance(columns, list) and _are_words(columns)):
        yield Problem(where, UNSAID, "lacks columns, a list of their names; add it")
        return
    needed = [*COLUMNS[name]]
    if name == "matmul":
        needed.append("rows" if "experts" in columns else "tokens")
    if missing := [one for one in needed if one not in columns]:
        yield Problem(where, UNSAID, f"lacks the columns {', '.join(missing)}; add them")
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        yield Problem(where, UNSAID, "lacks rows, a list of lists; add it")
        return
    for row in rows:
        if len(row) != len(columns):
            text = f"is not as long as columns ({len(columns)}); correct it"
            yield Problem(f"{where} row", row, text)
        elif wrong := [one for one in zip(columns, row, strict=True) if not _is_value(*one)]:
            column, value = wrong[0]
            what = "a word" if column in _WORDS else "a number above 0"
            yield Problem(f"{where} {column}", value, f"is not {what}; correct it")


def _are_words(found: list[Any]) -> bool:
    return bool(found) and all(isinstance(one, str) for one in found)


def _is_value(column: str, value: Any) -> bool:
    if column in _WORDS:
        return isinstance(value, str)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    # A fit has calls that add nothing.
    return 0 < value < float("inf") or (value == 0 and column.endswith("_us"))
