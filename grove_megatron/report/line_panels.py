"""What the panels of a comparison show: the numbers of a run over its iterations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from . import draw
from .arrays import Array
from .series import edges, with_gaps
from .shown import Shown
from .view import tokens_per_second, validations

Series = tuple[Array, Array]
"""Of one run: iterations [N], and values [N, layers or 1] with NaN where there are none."""


@dataclass(frozen=True)
class Panel:
    """A number of every run.

    Attributes:
        title: of the panel.
        of: its values; no finite one where the number does not apply.
        room: sets what the axis of numbers shows, when all lines are drawn.
    """

    title: str
    of: Callable[[Shown], Series]
    room: Callable[[Axes], None]


def panels_of(runs: Sequence[Shown]) -> list[Panel]:
    """All that there may be."""
    found = [Panel("lm loss, nats per token", _loss, lambda axes: draw.around(axes, 0.01))]
    if any(len(one.intervals) > 7 for one in runs):
        found.append(Panel("lm loss, the last half", _loss, _last_half))
    for of in dict.fromkeys(e.of for one in runs for e in validations(one.view)):
        room = partial(draw.around, share=0.01)
        found.append(Panel(f"lm loss, {of}", partial(_validation, of), room))
    return [
        *found,
        Panel("MaxVio of the experts", _measure("max_vio"), partial(draw.from_zero, least=0.5)),
        Panel("dead experts, all layers", _dead, partial(draw.from_zero, least=2)),
        Panel("groups per token", _measure("groups_per_token"), partial(draw.around, share=0.1)),
        Panel("pairs per token", _measure("pairs_per_token"), draw.from_zero),
        Panel("rows per token and layer", _measure("rows_per_token"), draw.from_zero),
        Panel(
            "share of routed pairs dropped",
            _measure("dropped_share"),
            partial(draw.from_zero, least=0.05),
        ),
        Panel(
            "routed pairs of a rank, most / mean",
            _measure("rank_pairs_imbalance"),
            partial(draw.at_least, low=1, high=1.25),
        ),
        Panel("RMS of the expert bias", _measure("bias_rms"), partial(draw.from_zero, least=0.01)),
        Panel("tokens per second", _speed, draw.from_zero),
    ]


def _measure(name: str) -> Callable[[Shown], Series]:
    def of(one: Shown) -> Series:
        none = np.full((len(one.intervals), 1), np.nan)
        return _over(one, one.measures.get(name, none))

    return of


def _over(one: Shown, values_IL: Array) -> Series:
    return edges(one.intervals)[1:], with_gaps(one.intervals, values_IL)


def _loss(one: Shown) -> Series:
    return _over(one, np.array([[i.losses.get("lm loss", np.nan)] for i in one.intervals]))


def _dead(one: Shown) -> Series:
    return _over(one, np.nansum(one.measures["dead_experts"], 1, keepdims=True))


def _speed(one: Shown) -> Series:
    intervals = one.view.intervals
    speeds = with_gaps(intervals, tokens_per_second(one.view)[:, None])
    return edges(intervals)[1:], speeds


def _validation(of: str, one: Shown) -> Series:
    made = {e.iteration: e.losses["lm loss"] for e in validations(one.view) if e.of == of}
    return np.array(sorted(made)), np.array([[made[i]] for i in sorted(made)]).reshape(-1, 1)


def _last_half(axes: Axes) -> None:
    """Where losses of different systems are told apart."""
    begin, end = axes.get_xlim()
    middle = (begin + end) / 2
    axes.set_xlim(left=middle)
    drawn = [np.asarray(line.get_data(), float) for line in axes.get_lines()]
    values = np.concatenate([y[(x >= middle) & np.isfinite(y)] for x, y in drawn])
    if values.size:
        low, high = float(values.min()), float(values.max())
        room = max(0.05 * (high - low), 0.002 * abs(low))
        axes.set_ylim(low - room, high + room)
