"""The short table: one line for every result, beside what counting says it could be."""

from collections.abc import Iterator

from .cells import Line, Run, dispatch_shape, fastest, find, layer_shape, over, rows

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
    name = f"dispatch, {row.ranks} ranks{where}: {dispatch_shape(row)}"
    yield [name, time, "", f"{count} of {what}" if count else ""]


def _layer(run: Run) -> Iterator[Line]:
    grove, plain = (fastest(rows(run, "time", name)) for name in ("grove", "plain"))
    if grove is None:
        return
    flops = find(run, "flop_ratio")
    yield [
        f"layer, {grove.tokens} tokens, {layer_shape(grove)}; {grove.kernel}",
        over(grove, plain),
        over(grove, find(run, "time", "naive", grove.kernel)),
        f"{flops.p50:.3f} of the operations" if flops else "",
    ]


def _step(run: Run) -> Iterator[Line]:
    row = run[0]
    grove, sent = find(run, "time"), find(run, "rows_per_token")
    yield [
        f"training step, {row.ranks} ranks, {row.layers} layers of {row.tokens} tokens a rank, "
        f"{layer_shape(row)}; {row.kernel}",
        over(grove, find(run, "time", "plain")),
        over(grove, find(run, "time", "naive")),
        f"{sent.p50 / row.topk:.3f} of the rows" if sent else "",
    ]
