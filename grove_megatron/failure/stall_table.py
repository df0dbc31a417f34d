"""What a job that stands still says: who holds it up, and where every rank is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .message import ranks_named

_EQUAL = ("all_reduce", "allreduce", "broadcast", "reduce", "reduce_scatter", "all_gather")
"""Begin the names of collectives to which every rank gives as many bytes."""
_MOST_ROWS = 64
UNSEEN = "cannot be looked at"
"""Begins what is said of a rank that answers, and cannot say where it is."""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """A collective that this rank has called and that has not ended.

    Args:
        group: "" where only the name is known, as of sends and receives.
        ranks: of the group.
        size: bytes that this rank gives.
        number: of the collective in its group.
        seconds: since it was called.
    """

    name: str
    group: str = ""
    ranks: Sequence[int] = ()
    size: int = 0
    number: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Wait":
        """From one of those that :func:`.position.position` gives."""
        ranks = [rank for one in said.get("ranks", ()) for rank in range(*one)]
        return cls(**{**said, "ranks": ranks})

    def __str__(self) -> str:
        if not self.group:
            return self.name
        return f"{self.name} of {self.group.rpartition(' ')[0]} ({ranks_named(self.ranks)})"


@dataclass(frozen=True, kw_only=True)
class Row:
    """Where a rank is.

    Args:
        idle: seconds since it was last seen to do something.
        iteration: from 1; 0 before training.
        microbatch: from 0, in a forward pass.
        called: collectives called so far, by group.
        silent: of a rank that does not say where it is: why, or what is known of its process.
        left: it is done, with exit code 0.
    """

    rank: int
    host: str
    idle: float
    iteration: int = 0
    microbatch: int | None = None
    layer: int | None = None
    stage: str = ""
    at: str = ""
    waits: Sequence[Wait] = ()
    called: Mapping[str, int] = field(default_factory=dict)
    silent: str = ""
    left: bool = False

    @classmethod
    def of(cls, said: Mapping[str, Any], **known: Any) -> "Row":
        """From what :func:`.position.position` gives."""
        waits = [Wait.of(wait) for wait in said["waits"]]
        return cls(**{**said, "waits": waits}, **known)

    @property
    def where(self) -> str:
        if self.left:
            return "has left the job with exit code 0"
        if self.silent:
            return self.silent
        layer = f"layer {self.layer}, " if self.layer is not None else ""
        return f"is in {layer}{self.stage}" + (f", at {self.at}" if self.at else "")


def culprit(rows: Sequence[Row]) -> str:
    """Who holds up the others, in a line; of all that is known, what explains the most.

    Args:
        rows: of all ranks in their order, those that have left too.
    """
    if silent := [row for row in rows if row.silent and not row.silent.startswith(UNSEEN)]:
        return _hold_up(silent, lambda row: row.silent, [row for row in rows if row.waits])
    if found := _mismatch(rows):
        return found
    waits_for = {row.rank: set(_behind(row, rows)) for row in rows}
    awaited = set().union(*waits_for.values())
    if awaited:
        ends = [row for row in rows if row.rank in awaited and not waits_for[row.rank]]
        if ends:
            # Of a send or receive it is not known whom it waits for, only that it does.
            idle = [row for row in rows if not (row.waits or row.left or row.silent)]
            ends = [row for row in ends if not row.waits] or idle or ends
            waiting = [row for row in rows if waits_for[row.rank] & {r.rank for r in ends}]
            return _not_in(ends, waiting or [row for row in rows if row.waits])
        circle = [row for row in rows if row.rank in awaited and waits_for[row.rank]]
        return "ranks wait for each other in different collectives: " + "; ".join(_in(circle))
    rows = [row for row in rows if not row.left]
    waiting = [row for row in rows if row.waits]
    if waiting and len(waiting) < len(rows):
        return _not_in([row for row in rows if not row.waits], waiting)
    if waiting:
        return (
            f"all ranks wait in {'; '.join(_in(rows))}: look at the network between them, and at "
            "the devices"
        )
    return "no rank waits for another: " + _each(rows, lambda row: row.where)


def _behind(row: Row, rows: Sequence[Row]) -> Iterator[int]:
    """Ranks that have yet to call what ``row`` waits in."""
    by_rank = {other.rank: other for other in rows if not other.silent}
    for wait in row.waits:
        for rank in wait.ranks:
            other = by_rank.get(rank)
            if other is not None and other.called.get(wait.group, 0) < wait.number:
                yield rank


def _mismatch(rows: Sequence[Row]) -> str:
    """The same call of a group, by another name or with other sizes on some ranks."""
    calls: dict[tuple[str, int], list[tuple[Row, Wait]]] = {}
    for row in rows:
        for wait in row.waits:
            if wait.group:
                calls.setdefault((wait.group, wait.number), []).append((row, wait))
    for called in calls.values():
        sizes = {wait.size for _, wait in called}
        names = {wait.name for _, wait in called}
        equal = all(name.startswith(_EQUAL) for name in names)
        if len(names) > 1 or (equal and len(sizes) > 1):
            by: dict[str, list[int]] = {}
            for row, wait in called:
                by.setdefault(f"{wait} with {wait.size:,} bytes", []).append(row.rank)
            said = "; ".join(f"{ranks_named(of)} in {what}" for what, of in by.items())
            return f"ranks have called different collectives: {said}"
    return ""


def _not_in(rows: Sequence[Row], waiting: Sequence[Row]) -> str:
    return _hold_up(rows, lambda row: row.where, waiting)


def _hold_up(rows: Sequence[Row], say: Callable[[Row], str], waiting: Sequence[Row]) -> str:
    said = _each(rows, say)
    holds = "holds" if len(rows) == 1 else "hold"
    return f"{said}, and {holds} up {'; '.join(_in(waiting))}" if waiting else said


def _in(rows: Sequence[Row]) -> list[str]:
    by: dict[str, list[int]] = {}
    for row in rows:
        by.setdefault(" and ".join(map(str, row.waits)), []).append(row.rank)
    return [f"{ranks_named(of)} in {what}" for what, of in by.items()]


def _each(rows: Sequence[Row], say: Callable[[Row], str]) -> str:
    by: dict[str, list[Row]] = {}
    for row in rows:
        by.setdefault(say(row), []).append(row)
    return "; ".join(
        f"{ranks_named([row.rank for row in of])} "
        f"({', '.join(sorted({row.host for row in of}))}) {_of_many(what) if of[1:] else what}"
        for what, of in by.items()
    )


def _of_many(what: str) -> str:
    verb, _, rest = what.partition(" ")
    plural = {"is": "are", "has": "have", "does": "do"}
    return f"{plural.get(verb, verb)} {rest}"


_HEAD = ("rank", "host", "iteration", "microbatch", "layer", "stage", "collective", "bytes")
_TAIL = ("seconds", "at")


def table(rows: Sequence[Row]) -> list[str]:
    """Lines; ranks in a row that are in one place share one."""
    cells: list[tuple[list[int], tuple[str, ...], float]] = []
    for row in rows:
        seen, idle = _cells(row)
        if cells and cells[-1][1] == seen:
            cells[-1] = ([*cells[-1][0], row.rank], seen, max(cells[-1][2], idle))
        else:
            cells.append(([row.rank], seen, idle))
    left = len(cells) - _MOST_ROWS
    lines: list[tuple[str, ...]] = [(*_HEAD, *_TAIL)]
    for ranks, seen, idle in cells[:_MOST_ROWS]:
        named = ranks_named(ranks).partition(" ")[2]
        lines.append((named, *seen[:-1], f"{idle:.0f}", seen[-1]))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return shown + ([f"and {left} more lines"] if left > 0 else [])


def _cells(row: Row) -> tuple[tuple[str, ...], float]:
    if row.silent:
        return (row.host, "", "", "", "", "", "", row.silent), row.idle
    if row.left:
        return (row.host, "", "", "", "left", "", "", ""), row.idle
    wait = max(row.waits, key=lambda one: one.seconds, default=None)
    seen = (
        row.host,
        str(row.iteration or ""),
        "" if row.microbatch is None else str(row.microbatch),
        "" if row.layer is None else str(row.layer),
        row.stage,
        "" if wait is None else str(wait),
        f"{wait.size:,}" if wait is not None and wait.group else "",
        row.at,
    )
    # The recorder knows of a collective to the nanosecond.
    return seen, wait.seconds if wait is not None and wait.seconds else row.idle
