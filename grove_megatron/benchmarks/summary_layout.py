"""The short table: one line for every result, beside what counting says it could be."""

from collections.abc import Iterator

from .cells import Line, Run, fastest, find, over, rows
from .records import Row

HEADER = ["Forward and backward of", "Time, of Megatron's own", "Time, of naive", "Counted"]


def summary(run: Run) -> Iterator[Line]:
    """Of dispatch, layer or step; nothing of another benchmark."""
    make = {"dispatch": _dispatch, "layer": _layer, "step": _step}.get(run[0].benchmark)
    return make(run) if make else iter(())


def _dispatch(run: Run) -> Iterator[Line]:
    row = run[0]
    variant, quantity, what, where = "grove", "rows_per_token", "the rows", ""
    if row.ranks_per_node:
        variant, quantity, what = "hierarchical", "leaving_rows_per_token", "rows between nodes"
        where = f" on nodes of {row.ranks_per_node}, hierarchical"
    time, count = (over(find(run, q, variant), find(run, q, "stock")) for q in ("time", quantity))
    name = (
        f"dispatch, {row.ranks} ranks{where}: {row.tokens} tokens a rank, hidden {row.hidden} "
        f"{row.dtype}, {row.experts} experts in {row.groups} groups, top-{row.topk}"
    )
    yield [name, time, "", f"{count} of {what}" if count else ""]


def _layer(run: Run) -> Iterator[Line]:
    grove, plain = (fastest(rows(run, "time", name)) for name in ("grove", "plain"))
    if grove is None:
        return
    flops = find(run, "flop_ratio")
    yield [
        f"layer: {grove.tokens} tokens, {_widths(grove)}",
        over(grove, plain),
        over(grove, find(run, "time", "naive", grove.kernel)),
        f"{flops.p50:.3f} of the operations" if flops else "",
    ]


def _step(run: Run) -> Iterator[Line]:
    row = run[0]
    grove, plain = find(run, "time"), find(run, "time", "plain")
    sent, flops = find(run, "rows_per_token"), find(run, "flop_ratio")
    model = f"training step, {row.ranks} ranks: {row.layers} layers, {row.tokens} tokens a rank, "
    rows = f"{sent.p50 / row.topk:.3f} of the rows" if sent else ""
    operations = f"{flops.p50:.3f} of the operations" if flops else ""
    yield [
        model + _widths(row),
        over(grove, plain),
        over(grove, find(run, "time", "naive")),
        ", ".join(filter(None, (rows, operations))),
    ]
    if alone := find(run, "time", "grove-dispatch"):
        yield [f"{model}without adjugates (`--grove-dispatch`)", over(alone, plain), "", rows]


def _widths(row: Row) -> str:
    return (
        f"hidden {row.hidden} {row.dtype}, {row.experts} experts x {row.expert_width} "
        f"({row.kernel}), {row.groups} adjugates x {row.adjugate_width}, top-{row.topk}"
    )
