"""How each benchmark's rows become the lines of a table."""

from collections.abc import Callable, Iterator, Sequence

from .records import Row

Run = Sequence[Row]
Line = list[str]


def lines_of(runs: Sequence[Run]) -> tuple[Line, list[Line]]:
    """Header and lines for runs of one benchmark."""
    header, make = _LAYOUTS[runs[0][0].benchmark]
    return header, [line for run in runs for line in make(run)]


def find(run: Run, quantity: str, variant: str = "grove", kernel: str | None = None) -> Row | None:
    """The row of a quantity; ``kernel`` None takes any."""
    for row in run:
        if (row.quantity, row.variant) == (quantity, variant) and kernel in (None, row.kernel):
            return row
    return None


def _milliseconds(row: Row | None) -> str:
    return f"{row.p50:.1f} ({row.p20:.1f}-{row.p80:.1f})" if row else ""


def _over(row: Row | None, other: Row | None, digits: int = 3) -> str:
    return f"{row.p50 / other.p50:.{digits}f}" if row and other else ""


def _number(row: Row | None, style: str) -> str:
    return format(row.p50, style) if row else ""


def _layer_shape(row: Row) -> str:
    return (
        f"{row.hidden} {row.dtype}, {row.experts} x {row.expert_width} and {row.groups} x "
        f"{row.adjugate_width}, top-{row.topk}"
    )


def _dispatch(run: Run) -> Iterator[Line]:
    row = run[0]
    stock, grove = (find(run, "time", name) for name in ("stock", "grove"))
    rows = [_number(find(run, "rows_per_token", name), ".2f") for name in ("grove", "stock")]
    sent, stock_sent = (find(run, "sent_bytes", name) for name in ("grove", "stock"))
    yield [
        f"{row.ranks}",
        f"{row.tokens} x {row.hidden} {row.dtype}, {row.experts} in {row.groups}, top-{row.topk}",
        _milliseconds(stock),
        _milliseconds(grove),
        _over(grove, stock),
        " of ".join(rows),
        _over(sent, stock_sent) if row.ranks > 1 else "",
        _number(find(run, "metadata_share"), ".2%"),
    ]


def _layer(run: Run) -> Iterator[Line]:
    plains = [row for row in run if (row.quantity, row.variant) == ("time", "plain")]
    fastest = min(plains, key=lambda row: row.p50, default=None)
    for grove in (row for row in run if (row.quantity, row.variant) == ("time", "grove")):
        kernel = grove.kernel
        plain, naive = (find(run, "time", name, kernel) for name in ("plain", "naive"))
        peak, plain_peak = (find(run, "peak_bytes", name, kernel) for name in ("grove", "plain"))
        allowed = find(run, "peak_bytes_allowed", "grove", kernel)
        yield [
            f"{grove.tokens} tokens, {_layer_shape(grove)}",
            kernel,
            *(_milliseconds(row) for row in (plain, naive, grove)),
            _over(grove, fastest),
            _number(find(run, "flop_ratio"), ".3f"),
            _over(grove, naive),
            _over(peak, plain_peak),
            _over(allowed, plain_peak),
            _number(find(run, "tflops", "grove", kernel), ".3g"),
            _number(find(run, "matmul_share", "grove", kernel), ".0%"),
        ]


def _step(run: Run) -> Iterator[Line]:
    row = run[0]
    times = {name: find(run, "time", name) for name in ("plain", "naive", "grove")}
    yield [
        f"{row.layers} layers, {row.tokens} tokens a rank, {_layer_shape(row)}",
        f"{row.ranks}",
        row.kernel,
        *(_milliseconds(time) for time in times.values()),
        _over(times["grove"], times["plain"]),
        _over(times["grove"], times["naive"]),
        _number(find(run, "rows_per_token"), ".2f"),
    ]


def _scaling(run: Run) -> Iterator[Line]:
    for sweep in ("tokens", "experts", "ranks"):
        for variant in ("plain", "grove"):
            points = [r for r in run if (r.quantity, r.variant) == (f"time over {sweep}", variant)]
            sizes = ", ".join(str(getattr(row, sweep)) for row in points)
            times = ", ".join(f"{row.p50:.1f}" for row in points)
            slope = _number(find(run, f"slope over {sweep}", variant), ".2f")
            yield [f"{sweep}: {sizes}", variant, times, slope]


_LAYOUTS: dict[str, tuple[Line, Callable[[Run], Iterator[Line]]]] = {
    "dispatch": (
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
    "layer": (
        [
            "Layer",
            "Experts as",
            "Plain, ms",
            "Naive, ms",
            "Grove, ms",
            "Grove / fastest plain",
            "Operations",
            "Grove / naive",
            "Peak memory, grove / plain",
            "Allowed",
            "TFLOP/s",
            "Of a matrix product",
        ],
        _layer,
    ),
    "step": (
        [
            "Model",
            "Ranks",
            "Experts as",
            "Plain, ms",
            "Naive, ms",
            "Grove, ms",
            "Grove / plain",
            "Grove / naive",
            "Rows a token",
        ],
        _step,
    ),
    "scaling": (["Grown", "Layer or dispatch", "ms", "Slope"], _scaling),
}
