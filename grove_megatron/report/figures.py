"""The figures of a report, in order."""

from collections.abc import Callable

from . import draw
from .coactivation_figures import coactivation
from .flow_figures import bias, ranks, sharing, traffic
from .load_figures import balance, dead, load_now, load_over_time
from .loss_figures import loss, speed
from .shown import Drawn, Shown
from .view import View

FIGURES: tuple[Callable[[Shown], Drawn], ...] = (
    *(load_over_time, load_now, balance, dead, sharing, coactivation, traffic, ranks, bias),
)


def draw_all(view: View) -> list[Drawn]:
    """Every figure of a report."""
    shown = Shown.of(view)
    with draw.style():
        return [loss(view), *(make(shown) for make in FIGURES), speed(view)]
