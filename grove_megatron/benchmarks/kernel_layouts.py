"""The tables of ``grove bench kernels``: the strategies, and every kernel alone."""

from collections.abc import Iterator

from .cells import Line, Run, fastest, find, layer_shape, milliseconds, number, over, rows

STRATEGIES_HEADER = [
    "Layer",
    "Strategy",
    "ms",
    "Of owner_rows",
    "Of experts alone",
    "Operations",
    "TFLOP/s",
    "Of a matrix product",
]
SINGLE_HEADER = [
    "Layer",
    "Kernel",
    "Of",
    "ms",
    "GB/s",
    "Of a copy",
    "TFLOP/s",
    "Of a matrix product",
]


def strategies(run: Run) -> Iterator[Line]:
    """One line each; a single kernel is known by the implementation it names."""
    times = [row for row in rows(run, "time") if not row.kernel]
    alone = fastest(row for row in times if row.variant.startswith("experts_only"))
    for row in times:
        yield [
            f"{row.tokens} tokens, {layer_shape(row)}",
            row.variant,
            milliseconds(row),
            over(row, find(run, "time", "owner_rows")),
            over(row, alone),
            *(number(find(run, quantity, row.variant, ""), style) for quantity, style in _SPEEDS),
        ]


_SPEEDS = (("flop_ratio", ".3f"), ("tflops", ".3g"), ("matmul_share", ".0%"))


def singles(run: Run) -> Iterator[Line]:
    """One line for every kernel of every implementation."""
    for row in rows(run, "time"):
        if row.kernel:
            speeds = (("gigabytes", ".3g"), ("copy_share", ".0%"), *_SPEEDS[1:])
            yield [
                f"{row.tokens} tokens, {layer_shape(row)}",
                row.variant,
                row.kernel,
                milliseconds(row, digits=2),
                *(number(find(run, q, row.variant, row.kernel), style) for q, style in speeds),
            ]
