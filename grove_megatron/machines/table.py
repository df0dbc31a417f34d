"""The report, to be read on a terminal."""

import sys
from collections.abc import Iterator, Sequence
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..failure.message import numbers
from ..printable import printable
from .borders import Border, Rows
from .problems import slow
from .records import Measured, Pair, Survey

_IN_FULL = 16
_SLOWEST = 8
_GIB = 2**30

_FILE_COLUMNS = 120


def show(survey: Survey, borders: Sequence[Border], rows: Rows | None, said: Sequence[str]) -> None:
    """Print everything that is no problem.

    Args:
        survey: of all ranks.
        borders: of the job's groups.
        rows: that leave a node; None: none do, or it is not planned.
        said: lines for the end.
    """
    # In a file, where no terminal says how wide it is, no column is cut off.
    wide = None if sys.stdout.isatty() else _FILE_COLUMNS
    console = Console(highlight=False, soft_wrap=True, width=wide)
    console.print(_nodes(survey))
    for line in _folder_lines(survey):
        console.print(escape(line))
    if survey.measured.backend:
        _show_measured(console, survey)
    if borders:
        console.print(_borders(borders))
    if rows is not None:
        by_node = "its ranks do not lie evenly on nodes"
        if rows.by_node is not None:
            by_node = f"{rows.by_node:.3f} with --grove-hierarchical-dispatch"
        console.print(f"rows of a token to other nodes, in a layer: {rows.flat:.3f}, or {by_node}")
    for line in said:
        console.print(escape(printable(line)))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _nodes(survey: Survey) -> Table:
    ranks, nodes = len(survey.ranks), survey.nodes
    cuda = survey.needs.device == "cuda"
    columns = ["node", "host", "ranks", "clock, s", "memory, GiB", "/dev/shm, GiB"]
    columns += ["GPU", "free, GiB"] * cuda
    kind = f"{ranks} rank{'s' * (ranks > 1)} on {len(nodes)} node{'s' * (len(nodes) > 1)}"
    table = _table(f"{kind}, {survey.needs.device}", *columns)
    reached = {one.node: one for one in survey.reached}
    for node, of_node in nodes.items():
        says = survey.said[node]
        clock = ""
        if (one := reached.get(node)) is not None and one.offset is not None:
            clock = f"{one.offset:+.4f} +-{one.uncertainty:.4f}"
        shm = "" if says.shared_memory is None else f"{says.shared_memory / _GIB:.2f}"
        cells = [
            *(node, printable(says.hostname), numbers([rank.rank for rank in of_node]), clock),
            *(f"{says.memory / _GIB:.2f}", shm),
        ]
        gpus = [rank.gpu for rank in of_node if rank.gpu is not None]
        if gpus:
            cells += [gpus[0].name, f"{min(gpu.free for gpu in gpus) / _GIB:.2f}"]
        table.add_row(*map(escape, cells))
    return table


def _folder_lines(survey: Survey) -> Iterator[str]:
    """How late all nodes saw what the others wrote, in the folders that they might share."""
    for flag in dict.fromkeys(look.flag for look in survey.seen):
        looks = [look for look in survey.seen if look.flag == flag]
        late = [look.seconds for look in looks if look.seconds is not None]
        if any(look.unseen for look in looks):
            shared = f"not shared, within {survey.bound:g} s"
        elif failed := next((look for look in looks if look.error), None):
            shared = f"not tried: node {failed.node} cannot write: {failed.error}"
        else:
            shared = f"all nodes saw what was written after {max(late):.3f} s"
        yield printable(f"{flag} ({looks[0].folder}): {shared}")


def _show_measured(console: Console, survey: Survey) -> None:
    measured = survey.measured
    title = f"GB/s each way, {measured.message / 2**20:g} MiB messages, {measured.backend}"
    if measured.between:
        if len(survey.nodes) <= _IN_FULL:
            console.print(_matrix(f"between nodes, {title}", [*survey.nodes], measured))
        else:
            console.print(_summary(f"between nodes, {title}", measured.between))
    if measured.inside:
        console.print(_summary(f"inside of nodes, between ranks, {title}", measured.inside))
    if measured.crossings:
        console.print(_crossings(measured))


def _crossings(measured: Measured) -> Table:
    title = f"all-to-all of a microbatch in a layer, {measured.backend}"
    columns = ("groups", "ranks", "MiB from a rank", "ms", "GB/s from a rank", "slowest", "ranks")
    table, crossings = _table(title, *columns), measured.crossings
    slowest = min(crossings, key=lambda one: one.gigabytes)
    table.add_row(
        str(len(crossings)),
        str(len(slowest.ranks)),
        f"{slowest.sent / 2**20:.3g}",
        f"{median(one.seconds for one in crossings) * 1e3:.3g}",
        f"{median(one.gigabytes for one in crossings):.3g}",
        f"{slowest.gigabytes:.3g}",
        numbers(slowest.ranks),
    )
    return table


def _matrix(title: str, nodes: list[str], measured: Measured) -> Table:
    table = _table(title, "node", *nodes)
    speeds = {(pair.one, pair.other): pair.gigabytes for pair in measured.between}
    speeds |= {(other, one): speed for (one, other), speed in speeds.items()}
    for one in nodes:
        cells = [f"{speeds[one, o]:.3g}" if (one, o) in speeds else "" for o in nodes]
        table.add_row(one, *cells)
    return table


def _summary(title: str, pairs: Sequence[Pair]) -> Table:
    table = _table(title, "pair", "GB/s", "of the median")
    speeds = [pair.gigabytes for pair in pairs]
    middle = median(speeds)
    table.add_row(f"median of {len(pairs)}", f"{middle:.3g}", "1.00")
    shown = slow(pairs)[:_SLOWEST] or [min(pairs, key=lambda pair: pair.gigabytes)]
    for pair in shown:
        speed = pair.gigabytes
        table.add_row(pair.names, f"{speed:.3g}", f"{speed / middle:.2f}")
    table.add_row("fastest", f"{max(speeds):.3g}", f"{max(speeds) / middle:.2f}")
    return table


def _borders(borders: Sequence[Border]) -> Table:
    table = _table("groups and nodes", "group", "ranks", "groups", "crossing nodes", "nodes, most")
    for one in borders:
        table.add_row(one.kind, *map(str, (one.size, one.count, one.crossing, one.most)))
    return table
