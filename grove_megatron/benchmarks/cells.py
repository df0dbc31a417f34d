"""What stands in the cells of a table."""

from collections.abc import Iterator, Sequence

from .records import Row
from .report import spread

Run = Sequence[Row]
Line = list[str]


def rows(run: Run, quantity: str, variant: str | None = None) -> Iterator[Row]:
    """The rows of a quantity, of any variant if it is not named."""
    return (r for r in run if r.quantity == quantity and variant in (None, r.variant))


def find(run: Run, quantity: str, variant: str = "grove", kernel: str | None = None) -> Row | None:
    """The row of a quantity; ``kernel`` None takes any."""
    return next((r for r in rows(run, quantity, variant) if kernel in (None, r.kernel)), None)


def fastest(times: Iterator[Row]) -> Row | None:
    return min(times, key=lambda row: row.p50, default=None)


def milliseconds(row: Row | None, digits: int = 1) -> str:
    return spread(row, digits) if row else ""


def over(row: Row | None, other: Row | None, digits: int = 3) -> str:
    """One over the other, empty where either is missing or nothing is to be divided by."""
    return f"{row.p50 / other.p50:.{digits}f}" if row and other and other.p50 else ""


def gibibytes(row: Row | None) -> str:
    return f"{row.p50 / 2**30:.2f}" if row else ""


def thousands(row: Row | None) -> str:
    """Milliseconds as seconds."""
    return f"{row.p50 / 1000:.1f}" if row else ""


def number(row: Row | None, style: str) -> str:
    return format(row.p50, style) if row else ""


def dispatch_shape(row: Row) -> str:
    return f"{row.tokens} x {row.hidden} {row.dtype}, {row.experts} in {row.groups}, top-{row.topk}"


def layer_shape(row: Row) -> str:
    return (
        f"{row.hidden} {row.dtype}, {row.experts} x {row.expert_width} and {row.groups} x "
        f"{row.adjugate_width}, top-{row.topk}"
    )
