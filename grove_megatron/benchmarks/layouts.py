"""How each benchmark's rows become the lines of a table."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .cells import (
    Line,
    Run,
    dispatch_shape,
    fastest,
    find,
    gibibytes,
    layer_shape,
    milliseconds,
    number,
    over,
    rows,
    thousands,
)
from .kernel_layouts import SINGLE_HEADER, STRATEGIES_HEADER, singles, strategies
from .summary_layout import HEADER, summary


@dataclass(frozen=True)
class Layout:
    """``lines`` makes those of one run; none where the run does not belong into this table."""

    header: Line
    lines: Callable[[Run], Iterator[Line]]


def _dispatch(run: Run) -> Iterator[Line]:
    row = run[0]
    if row.ranks_per_node:
        return
    stock, grove = (find(run, "time", name) for name in ("stock", "grove"))
    sent, stock_sent = (find(run, "sent_bytes", name) for name in ("grove", "stock"))
    counts = [number(find(run, "rows_per_token", name), ".2f") for name in ("grove", "stock")]
    yield [
        f"{row.ranks}",
        dispatch_shape(row),
        milliseconds(stock),
        milliseconds(grove),
        over(grove, stock),
        " of ".join(counts),
        over(sent, stock_sent),
        number(find(run, "metadata_share"), ".2%"),
    ]


def _nodes(run: Run) -> Iterator[Line]:
    row = run[0]
    if not row.ranks_per_node:
        return
    stock = find(run, "time", "stock")
    for time in rows(run, "time"):
        hops = ("node_rows_per_token", "rows_per_token")
        sent = [number(find(run, hop, time.variant), ".2f") for hop in hops]
        yield [
            f"{row.ranks} on {row.ranks // row.ranks_per_node} nodes",
            dispatch_shape(row),
            time.variant,
            milliseconds(time),
            over(time, stock),
            " + ".join(filter(None, sent)),
            number(find(run, "leaving_rows_per_token", time.variant), ".2f"),
        ]


def _layer(run: Run) -> Iterator[Line]:
    plain_of_any = fastest(rows(run, "time", "plain"))
    for grove in rows(run, "time", "grove"):
        kernel = grove.kernel
        plain, naive = (find(run, "time", name, kernel) for name in ("plain", "naive"))
        peak, plain_peak = (find(run, "peak_bytes", name, kernel) for name in ("grove", "plain"))
        yield [
            f"{grove.tokens} tokens, {layer_shape(grove)}",
            kernel,
            *(milliseconds(row) for row in (plain, naive, grove)),
            over(grove, plain_of_any),
            number(find(run, "flop_ratio"), ".3f"),
            over(grove, naive),
            over(find(run, "time", "grove, deterministic", kernel), grove),
            over(peak, plain_peak),
            over(find(run, "peak_bytes_allowed", "grove", kernel), plain_peak),
            number(find(run, "tflops", "grove", kernel), ".3g"),
            number(find(run, "matmul_share", "grove", kernel), ".0%"),
            number(find(run, "products_share", "grove", kernel), ".0%"),
        ]


def _step(run: Run) -> Iterator[Line]:
    row = run[0]
    names = ("plain", "naive", "grove-dispatch", "grove")
    times = {name: find(run, "time", name) for name in names}
    yield [
        f"{row.layers} layers, {row.tokens} tokens a rank, {layer_shape(row)}",
        f"{row.ranks}",
        row.kernel,
        *(milliseconds(time) for time in times.values()),
        over(times["grove-dispatch"], times["plain"]),
        over(times["grove"], times["plain"]),
        number(find(run, "flop_ratio"), ".3f"),
        over(times["grove"], times["naive"]),
        number(find(run, "rows_per_token"), ".2f"),
    ]


def _scaling(run: Run) -> Iterator[Line]:
    for sweep in ("tokens", "experts", "ranks"):
        for variant in ("plain", "grove"):
            points = list(rows(run, f"time over {sweep}", variant))
            sizes = ", ".join(str(getattr(row, sweep)) for row in points)
            times = ", ".join(f"{row.p50:.1f}" for row in points)
            slope = number(find(run, f"slope over {sweep}", variant), ".2f")
            yield [f"{sweep}: {sizes}", variant, times, slope]


def _local(run: Run) -> Iterator[Line]:
    for time in rows(run, "time"):
        found = {name: find(run, name, time.variant) for name in ("speed_up", "theory")}
        pairs = find(run, "pairs_per_token", time.variant)
        yield [
            time.variant,
            milliseconds(time),
            *(number(one, ".3f") for one in found.values()),
            number(pairs, ".3f"),
        ]


def _routers(run: Run) -> Iterator[Line]:
    for time in rows(run, "time"):
        beside = find(run, "ratio", time.variant)
        counted = find(run, "iterations", time.variant)
        repeated = number(counted, ".0f") if counted and counted.p50 else ""
        of = "top-1" if time.variant in ("top-1", "base") else "top-k"
        yield [time.variant, milliseconds(time), f"{number(beside, '.3f')} of {of}", repeated]


def _convert(run: Run) -> Iterator[Line]:
    row = run[0]
    total = find(run, "weight_bytes", "")
    for name, copy in (("import", "copy of hf"), ("export", "copy of megatron")):
        seconds, copied = (find(run, "time", variant) for variant in (name, copy))
        peak, allowed = (find(run, f"peak_bytes{end}", name) for end in ("", "_allowed"))
        yield [
            name,
            f"{row.layers} layers of {row.hidden} {row.dtype}, {row.experts} experts, "
            f"{row.groups} adjugates",
            gibibytes(total),
            thousands(seconds),
            thousands(copied),
            number(find(run, "speed_over_copy", name), ".2f"),
            f"{gibibytes(peak)} of {gibibytes(allowed)}",
        ]


LAYOUTS = {
    "convert": Layout(
        [
            "Command",
            "Weights",
            "GiB",
            "s",
            "Copy, s",
            "Speed, of the copy's",
            "RssAnon, GiB, of allowed",
        ],
        _convert,
    ),
    "dispatch": Layout(
        [
            "Ranks",
            "Tokens a rank, experts",
            "Stock, ms",
            "Grove, ms",
            "Grove / stock",
            "Rows a token",
            "Bytes, grove / stock",
            "Metadata",
        ],
        _dispatch,
    ),
    "nodes": Layout(
        [
            "Ranks",
            "Tokens a rank, experts",
            "Dispatch",
            "ms",
            "Of stock",
            "Rows a token",
            "Of them to other nodes",
        ],
        _nodes,
    ),
    "layer": Layout(
        [
            "Layer",
            "Experts as",
            "Plain, ms",
            "Naive, ms",
            "Grove, ms",
            "Grove / fastest plain",
            "Operations",
            "Grove / naive",
            "Deterministic / grove",
            "Peak memory, grove / plain",
            "Allowed",
            "TFLOP/s",
            "Of a matrix product",
            "Products",
        ],
        _layer,
    ),
    "kernels": Layout(STRATEGIES_HEADER, strategies),
    "single": Layout(SINGLE_HEADER, singles),
    "step": Layout(
        [
            "Model",
            "Ranks",
            "Experts as",
            "Plain, ms",
            "Naive, ms",
            "grove-dispatch, ms",
            "Grove, ms",
            "grove-dispatch / plain",
            "Grove / plain",
            "Operations",
            "Grove / naive",
            "Rows a token",
        ],
        _step,
    ),
    "local": Layout(
        ["FFN + others", "Forward, ms", "Speed-up", "At most", "FFN experts a token"], _local
    ),
    "routers": Layout(["Router", "Forward and backward, ms", "Ratio", "Iterations"], _routers),
    "scaling": Layout(["Grown", "Layer or dispatch", "ms", "Slope"], _scaling),
    "summary": Layout(HEADER, summary),
}
"""By benchmark, or as a document asks for it."""
