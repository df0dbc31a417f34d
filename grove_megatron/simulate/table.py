"""What was simulated, to be read on a terminal."""

import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..printable import printable
from .run import Found
from .sizes import Sizes
from .summary import Dispatch, Spread, Summary

_MIB = 2**20
_FILE_COLUMNS = 120
_NONE = "–"


def show(before: Sequence[Found], after: Sequence[Found]) -> None:
    """Print what routings cost.

    Args:
        before: groups in order.
        after: the same as a placement has them; empty where there is none.
    """
    # In a file, where no terminal says how wide it is, no column is cut off.
    wide = None if sys.stdout.isatty() else _FILE_COLUMNS
    console = Console(highlight=False, soft_wrap=True, width=wide)
    for found in before:
        console.print(escape(printable(_head(found))))
        console.print(_dispatches(found.whole))
        console.print(_work(found.whole, found.asked.sizes))
        for line in _lines(found):
            console.print(escape(printable(line)))
    if len(before) > 1:
        console.print(_compared(before))
    for one, other in zip(before, after, strict=False):
        console.print(f"{escape(printable(one.asked.text))}, as placed:")
        console.print(_dispatches(other.whole))
        console.print(_work(other.whole, one.asked.sizes))
        console.print(_saving(one.whole, other.whole))


def _head(found: Found) -> str:
    sizes, whole = found.asked.sizes, found.whole
    groups = f" in {sizes.groups} groups" if sizes.groups else ""
    nodes = f"{sizes.nodes} node{'s' if sizes.nodes > 1 else ''}"
    many = f", {whole.micro_batches} micro batches" if whole.micro_batches > 1 else ""
    ranks = f"{sizes.ranks} rank{'s' if sizes.ranks > 1 else ''}"
    return (
        f"{found.asked.text}: top {sizes.topk} of {sizes.experts} experts{groups}, {ranks} on "
        f"{nodes}, {whole.tokens:,} tokens of {sizes.row_bytes:,} bytes{many}"
    )


def _table(*columns: str) -> Table:
    table = Table()
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table


def _dispatches(of: Summary) -> Table:
    table = _table(
        "dispatch",
        "rows of a token\nto its node",
        "\nto other nodes",
        "MiB from a rank\nmean",
        "\nmax/mean",
        "MiB from a node\nmean",
        "\nmax/mean",
    )
    for name, one in _ways(of):
        table.add_row(
            name,
            f"{one.rows_on_node:.3f}",
            f"{one.rows_across:.3f}",
            _mib(one.sent.mean),
            _ratio(one.sent),
            _mib(one.node_sent.mean),
            _ratio(one.node_sent),
        )
    return table


def _ways(of: Summary) -> Iterator[tuple[str, Dispatch]]:
    yield "a row to a rank", of.flat
    if of.two_hops is not None:
        yield "hierarchical", of.two_hops
    yield "Megatron's alltoall", of.stock
    yield "Megatron's allgather", of.all_gather


def _work(of: Summary, sizes: Sizes) -> Table:
    table = _table("comes to", "", "mean", "p50", "p99", "max", "max/mean")
    ways = list(_ways(of))
    parts = [("a rank, MiB", name, one.received, _mib) for name, one in ways]
    if sizes.nodes > 1:
        parts += [("a node, MiB", name, one.node_received, _mib) for name, one in ways]
    parts += [("a rank", "rows", of.rows, _count), ("", "routed pairs", of.pairs, _count)]
    if sizes.groups:
        parts.append(("", "adjugate pairs", of.adjugate_pairs, _count))
    before = ""
    for what, name, spread, shown in parts:
        if what and what != before:
            table.add_section()
        numbers = (spread.mean, spread.p50, spread.p99, spread.max)
        table.add_row("" if what == before else what, name, *map(shown, numbers), _ratio(spread))
        before = what or before
    return table


def _mib(count: float) -> str:
    return f"{count / _MIB:,.2f}"


def _count(count: float) -> str:
    return f"{count:,.0f}"


def _ratio(of: Spread) -> str:
    return _NONE if of.imbalance is None else f"{of.imbalance:.3f}"


def _lines(found: Found) -> Iterator[str]:
    of, sizes = found.whole, found.asked.sizes
    yield (
        f"rows per token {of.rows_per_token:.3f} (uniform routing: {of.uniform_rows:.3f}), to "
        f"nodes {of.node_rows_per_token:.3f} ({of.uniform_node_rows:.3f})"
    )
    if sizes.groups:
        yield f"groups per token {of.groups_per_token:.3f} ({of.uniform_groups:.3f})"
    if of.planned_ranks < sizes.ranks:
        yield (
            f"plans were made of {of.planned_ranks} of {sizes.ranks} ranks, and send what was "
            "counted; of the others the rows were counted"
        )
    asked = found.asked
    if asked.steps % asked.whole:
        yield (
            f"{asked.text} begins again after {asked.whole} steps, of which --steps "
            f"({asked.steps}) is no multiple: these are not the figures of the whole"
        )
    record = found.asked.record
    if record is not None and record.placement is not None:
        yield (
            f"the job counted its rows under --grove-placement ({record.placement}); these are of "
            "groups in order, and are not compared with them"
        )
    if found.counted is not None:
        counted, drawn = found.counted
        yield (
            f"the job counted {counted:.3f} rows per token at its own ranks, this routing has "
            f"{drawn:.3f} there ({drawn / counted - 1:+.1%})"
        )


def _compared(of: Sequence[Found]) -> Table:
    rows, bytes_ = ("rows per token\nflat", "\nto nodes"), ("MiB to a rank\nflat max", "\nmax/mean")
    table = _table("routing", *rows, *bytes_, "hierarchical max", "alltoall max", "pairs\nmax/mean")
    for found in of:
        one = found.whole
        table.add_row(
            escape(printable(found.asked.text)),
            f"{one.rows_per_token:.3f}",
            f"{one.node_rows_per_token:.3f}",
            _mib(one.flat.received.max),
            _ratio(one.flat.received),
            _NONE if one.two_hops is None else _mib(one.two_hops.received.max),
            _mib(one.stock.received.max),
            _ratio(one.pairs),
        )
    return table


def _saving(before: Summary, after: Summary) -> str:
    def change(old: float, new: float) -> str:
        return f"{old:.3f} -> {new:.3f}" + (f" ({new / old - 1:+.1%})" if old else "")

    rows = change(before.flat.rows_leaving, after.flat.rows_leaving)
    text = f"rows of a token that leave a rank {rows}"
    if before.two_hops is not None and after.two_hops is not None:
        rows = change(before.two_hops.rows_across, after.two_hops.rows_across)
        text += f", hierarchical to other nodes {rows}"
    pairs = f"{_ratio(before.pairs)} -> {_ratio(after.pairs)}"
    return f"{text}, routed pairs max/mean {pairs}"
