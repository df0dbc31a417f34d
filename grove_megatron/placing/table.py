"""What was placed, to be read on a terminal, and as numbers."""

import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from ..printable import printable
from .rows import Rows
from .run import Found
from .solve import SURE, Placed, State

_FILE_COLUMNS = 100
_SAID = {
    "saves": "fewer rows",
    "balances": "less load",
    "noise": "left: noise",
    "kept": "left: no better",
    "off": "left: rows are off",
}


def show(found: Found, to_errors: bool) -> None:
    """Print it.

    Args:
        to_errors: because the output is for a program.
    """
    stream = sys.stderr if to_errors else sys.stdout
    wide = None if stream.isatty() else _FILE_COLUMNS
    console = Console(file=stream, highlight=False, soft_wrap=True, width=wide)
    for line in _heading(found):
        console.print(escape(printable(line)))
    console.print(_table(found))
    for line in summary(found):
        console.print(escape(printable(line)))


def _heading(found: Found) -> Iterator[str]:
    goal, unit = found.goal, "groups" if found.source.groups else "experts"
    units = f"{found.source.units} {unit}"
    yield f"{units} on {goal.ranks} expert-parallel ranks, by {found.source.said}"
    if goal.per_node is not None:
        cost = f"a row to a node counts as {goal.node_cost:.3g} inside one"
        yield f"a node has {goal.per_node} of them; {cost}"


def summary(found: Found) -> list[str]:
    """What all of it comes to, in a few lines."""
    layers = [one for one in found.layers.values() if one is not None]
    unseen = [name for name, one in found.layers.items() if one is None]
    moved = [one for one in layers if one.order is not None]
    lines = []
    if unseen:
        lines.append(f"left alone, for half of what was recorded has no token: {', '.join(unseen)}")
    if layers:
        of = f"{len(moved)} of {len(found.layers)} layers moved"
        lines.append(f"{of}: {_saved(layers) if moved else 'no saving is claimed'}")
    complete = layers and all(one.complete for one in layers)
    how = "every partition was looked at" if complete else "found by a search"
    lines.append(f"{how}, by estimated rows" if found.source.estimated else how)
    checked = [(one.counted, one.before.ranks.even) for one in layers if one.counted is not None]
    if checked:
        off = max(abs(even / counted - 1) for counted, even in checked)
        lines.append(
            f"of the order in use pairs alone tell the rows that the job counted to {off:.1%}"
        )
    lines += found.source.doubts
    if found.output is None:
        lines.append("nothing was written; --output FILE writes a placement")
    else:
        used = "--grove-placement" if found.assignment.layers else "every layer keeps its order"
        lines.append(f"{found.output}: the placement ({used})")
    return lines


def _saved(layers: list[Placed]) -> str:
    """Rows and the largest load over all layers, those that are left included."""
    now = sum(one.now for one in layers)
    used = [(one.before if one.order is None else one.after) for one in layers]
    least, most = (
        sum(one.now if one.order is None else getattr(one.after.ranks, end) for one in layers)
        for end in ("low", "high")
    )
    shares = [abs(1 - most / now), abs(1 - least / now)]
    word = "fewer" if most <= now else "more"
    of = " to ".join(dict.fromkeys(f"{share:.1%}" for share in sorted(shares)))
    loads = [max(state.load for state in states) for states in ([o.before for o in layers], used)]
    return (
        f"{of} {word} rows of all layers; largest load {loads[0]:.3f} → {loads[1]:.3f} of the mean"
    )


def as_numbers(found: Found) -> dict[str, Any]:
    """All of it, for JSON: rows of a token, loads over their mean."""
    return {
        "source": found.source.said,
        "experts": found.source.experts,
        "groups": found.source.groups,
        "ranks": found.goal.ranks,
        "gpus_per_node": found.goal.per_node,
        "doubts": found.source.doubts,
        "output": None if found.output is None else str(found.output),
        "moved": [n for n, one in found.layers.items() if one is not None and one.order],
        "layers": {
            name: None if one is None else _numbers(one) for name, one in found.layers.items()
        },
    }


def _numbers(one: Placed) -> dict[str, Any]:
    return {
        "verdict": one.verdict,
        "now": one.now,
        "before": _state(one.before),
        "after": _state(one.after),
        "saved_at_least": one.saved,
        "deviation": one.deviation,
        "greedy_load": one.greedy,
        "complete": one.complete,
        "tokens": int(one.tokens),
        "counted": one.counted,
        "order": one.order,
    }


def _state(state: State) -> dict[str, Any]:
    def of(rows: Rows | None) -> list[float] | None:
        return None if rows is None else [rows.even, rows.low, rows.high]

    return {"rows": of(state.ranks), "node_rows": of(state.nodes), "load": float(state.load)}


def _table(found: Found) -> Table:
    of_nodes = ["nodes a token meets"] * (found.goal.per_node is not None)
    names = [
        "layer",
        "ranks a token meets",
        *of_nodes,
        "sure to",
        "largest load/mean",
        "greedy",
        "",
    ]
    table = Table(*(Column(name, no_wrap=bool(name != "nodes a token meets")) for name in names))
    for name, one in found.layers.items():
        if one is None:
            table.add_row(escape(name), *[""] * (len(names) - 2), "left: no tokens")
            continue
        nodes = []
        if one.before.nodes is not None and one.after.nodes is not None:
            nodes = [_change(one.before.nodes, one.after.nodes)]
        table.add_row(
            escape(name),
            _change(one.before.ranks, one.after.ranks),
            *nodes,
            f"±{SURE * one.deviation:.3f}",
            f"{one.before.load:.3f} → {one.after.load:.3f}",
            f"{one.greedy:.3f}",
            _SAID[one.verdict],
        )
    return table


def _change(before: Rows, after: Rows) -> str:
    low, high = f"{after.low:.3f}", f"{after.high:.3f}"
    return f"{before.even:.3f} → {low if low == high else f'{low} to {high}'}"
