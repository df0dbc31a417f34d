"""The figures of a report, in order."""

from collections.abc import Callable, Sequence

from . import draw
from .flow_figures import bias, ranks, sharing, traffic
from .load_figures import balance, dead, load_now, load_over_time, loss
from .record import Interval
from .shown import Drawn, Shown

FIGURES: tuple[Callable[[Shown], Drawn], ...] = (
    *(load_over_time, load_now, balance, dead, sharing, traffic, ranks, bias),
)


def draw_all(intervals: Sequence[Interval]) -> list[Drawn]:
    """Every figure of a report.

    Args:
        intervals: of one model, see ``series.of_one_model``.
    """
    shown = Shown.of(intervals)
    with draw.style():
        return [loss(intervals), *(make(shown) for make in FIGURES)]
