"""The figure of a comparison: a panel for every number, a colour for every system."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from . import draw
from .arrays import Array
from .line_panels import Series, panels_of
from .series import edges
from .shown import Drawn, Shown

_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Curve:
    """What has one colour: a run, or the seeds of a system.

    Attributes:
        name: to be read in the key.
        runs: one at least.
    """

    name: str
    runs: Sequence[Shown]


def lines(curves: Sequence[Curve], layers: bool) -> Drawn:
    """Draw every number that any run has.

    Args:
        curves: in the order of their colours.
        layers: show the range over layers of every run, for which few have room.
    """
    runs = [one for curve in curves for one in curve.runs]
    panels = [p for p in panels_of(runs) if any(_known(p.of(one)) for one in runs)]
    columns = max(1, min(4, len(curves), 130 // (8 + max(len(c.name) for c in curves))))
    key = 0.3 + 0.22 * -(-len(curves) // columns)
    rows = -(-len(panels) // 2)
    fig = draw.figure(3.0 * rows + key)
    cells = list(fig.subplots(rows, 2, squeeze=False).flat)
    looks = [_look(number) for number in range(len(curves))]
    for axes, panel in zip(cells, panels, strict=False):
        for curve, look in zip(curves, looks, strict=True):
            _draw(axes, [panel.of(one) for one in curve.runs], look, layers)
        axes.set_title(panel.title)
        axes.set_xlabel("iteration")
        ends = [edges(one.intervals) for one in runs]
        axes.set_xlim(min(e[0] for e in ends), max(e[-1] for e in ends))
        panel.room(axes)
    for axes in cells[len(panels) :]:
        axes.set_visible(False)
    handles = [
        Line2D([], [], label=_short(c.name), **k) for c, k in zip(curves, looks, strict=True)
    ]
    fig.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=2.5)
    return Drawn("lines", "Side by side", _read(curves, layers), fig)


def _read(curves: Sequence[Curve], layers: bool) -> str:
    texts = ["Means over layers" + (", and their range." if layers else ".")]
    if any(len(curve.runs) > 1 for curve in curves):
        texts.append(
            "Where a system has several seeds the thick line is their mean and the band their "
            "range, as far as all of them go; thin lines are the seeds."
        )
    texts.append("Where a number does not apply to a run it has no line.")
    return " ".join(texts)


def _known(series: Series) -> bool:
    return bool(np.isfinite(series[1]).any())


def _look(number: int) -> dict[str, Any]:
    """Colour first; with more systems than colours, how a line is broken."""
    style, colour = divmod(number, len(draw.COLOURS))
    return {"color": draw.COLOURS[colour], "linestyle": _STYLES[style % len(_STYLES)]}


def _draw(axes: Axes, seeds: Sequence[Series], look: dict[str, Any], layers: bool) -> None:
    known = [(x, y) for x, y in seeds if _known((x, y))]
    means = [(x, _mean(y)) for x, y in known]
    shade = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
    if len(means) > 1:
        for x, y in means:
            axes.plot(x, y, color=look["color"], alpha=0.35, linewidth=0.7)
        x, y_SX = together(means)
        axes.fill_between(x, y_SX.min(0), y_SX.max(0), **shade)
        means = [(x, y_SX.mean(0))]
    for x, y in means:
        axes.plot(x, y, **look)
        # A single value between two gaps is no line.
        none = np.r_[True, np.isnan(y), True]
        alone = ~none[1:-1] & none[:-2] & none[2:]
        axes.plot(x[alone], y[alone], color=look["color"], marker="o", markersize=4, linestyle="")
    if layers:
        for x, y in known:
            axes.fill_between(x, np.fmin.reduce(y, 1), np.fmax.reduce(y, 1), **shade)


def together(seeds: Sequence[Series]) -> Series:
    """Lines of several seeds at the iterations of any of them: [N], [seeds, N].

    A value between two points is that of the line. NaN where a seed has none: before it begins,
    after it ends, and in its gaps.
    """
    x = np.unique(np.concatenate([x for x, _ in seeds]))
    return x, np.stack([np.interp(x, a, b, left=np.nan, right=np.nan) for a, b in seeds])


def _mean(values_NL: Array) -> Array:
    """Over the layers that have one, [N]."""
    known = np.isfinite(values_NL)
    sums = np.where(known, values_NL, 0).sum(1)
    return np.where(known.any(1), sums / np.maximum(known.sum(1), 1), np.nan)


def _short(name: str) -> str:
    return name if len(name) <= 64 else f"{name[:40]} … {name[-20:]}"
