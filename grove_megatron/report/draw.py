"""Drawing that several figures share: lines over iterations, heat maps, one style."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from .arrays import Array
from .record import Interval
from .series import edges, resumed, with_gaps

WIDTH = 11.0
"""Of a figure, in inches."""
DPI = 110

BLUE, ORANGE, GREEN, GRAY = "#1f6fb4", "#e07b1a", "#2b8a3e", "#666666"
NO_TOKEN = "#111111"

_STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    # A name with dollars in it is a name, no formula.
    "text.parse_math": False,
}


def panels(rows: int, columns: int, height: float) -> tuple[Figure, Any, Axes]:
    """Many small panels with the same axes, and beside them those of a colour bar.

    Margins are given in inches: the constrained layout takes seconds for as many panels.
    """
    above, below, left, right, title = 0.3, 0.6, 0.75, 1.0, 0.35
    total = above + below + rows * height + (rows - 1) * title
    fig = Figure(figsize=(WIDTH, total))
    grid = fig.add_gridspec(
        rows,
        columns,
        left=left / WIDTH,
        right=1 - right / WIDTH,
        bottom=below / total,
        top=1 - above / total,
        wspace=0.12,
        hspace=title / height,
    )
    bar = min(6.0, total - above - below)
    place = (1 - 0.8 / WIDTH, (total + below - above - bar) / 2 / total, 0.2 / WIDTH, bar / total)
    return fig, grid.subplots(sharex=True, sharey=True, squeeze=False), fig.add_axes(place)


@contextmanager
def style() -> Iterator[None]:
    """The look of a report's figures; matplotlib's settings are as before afterwards."""
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def figure(height: float) -> Figure:
    """A figure that no window shows."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def over_iterations(axes: Axes, intervals: Sequence[Interval], label: str) -> None:
    """Name the axes, and mark where another process went on."""
    axes.set_xlabel("iteration")
    axes.set_ylabel(label)
    begin, *_, end = edges(intervals)
    axes.set_xlim(begin, end)
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    for iteration in resumed(intervals):
        axes.axvline(iteration, color=GRAY, linewidth=0.8, linestyle=":")


def band(
    axes: Axes, intervals: Sequence[Interval], values_IL: Array, color: str, label: str
) -> None:
    """The mean over layers as a line, and from the lowest to the highest layer as a band.

    Args:
        values_IL: [intervals, layers], NaN where a layer saw no token.
    """
    kept = ~np.isnan(values_IL).all(1)
    if not kept.any():
        return
    shown = [interval for interval, k in zip(intervals, kept, strict=True) if k]
    values = values_IL[kept]
    line(axes, shown, np.nanmean(values, 1), color, label)
    if values.shape[1] > 1:
        low, high = (with_gaps(shown, f(values, 1)) for f in (np.nanmin, np.nanmax))
        axes.fill_between(edges(shown)[1:], low, high, color=color, alpha=0.15, linewidth=0)


def line(
    axes: Axes, intervals: Sequence[Interval], values_I: Array, color: str, label: str
) -> None:
    """One number of every interval; broken where iterations were not recorded."""
    values = with_gaps(intervals, values_I)
    # A single one between two gaps is no line.
    marker = "o" if len(intervals) < 2 or len(values) > len(intervals) else None
    axes.plot(edges(intervals)[1:], values, color=color, label=label, marker=marker, markersize=4)


def layers_over_time(
    axes: Axes,
    intervals: Sequence[Interval],
    values_IL: Array,
    label: str,
    cmap: str = "viridis",
    integer: bool = False,
) -> None:
    """A heat map from 0, iterations to the right and layers upwards, with its colour bar.

    The colours end where the highest fiftieth of the values begins: the first iterations of a
    training would otherwise take them all.
    """
    values_LI = np.ma.masked_invalid(with_gaps(intervals, values_IL).T)
    layers = intervals[0].run.layers
    seen = values_LI.compressed()
    top = float(np.quantile(seen, 0.98)) if seen.size else 0.0
    top = top or float(seen.max(initial=0)) or 1.0
    mesh = axes.pcolormesh(
        edges(intervals), np.arange(len(layers) + 1), values_LI, cmap=cmap, vmin=0, vmax=top
    )
    axes.grid(False)
    axes.set_xlabel("iteration")
    name_layers(axes, layers)
    extend = "max" if seen.max(initial=0) > top else "neither"
    bar = axes.figure.colorbar(mesh, ax=axes, label=label, pad=0.02, extend=extend)
    if integer:
        bar.locator = MaxNLocator(integer=True)
        bar.update_ticks()


def from_zero(axes: Axes) -> None:
    """Have the axis of numbers begin at 0, with some room above the highest."""
    top = float(axes.dataLim.ymax)
    axes.set_ylim(0, 1.12 * top if 0 < top < np.inf else 1)


def few_ticks(axes: Axes) -> None:
    """As many as a small panel has room for, the last one's label not in the next panel."""
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10], integer=True, prune="upper"))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def legend(axes: Axes, **where: Any) -> None:
    """What the lines are, if there are any."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**where)


def shades(count: int) -> list[Any]:
    """Colours from dark to light for numbers in order."""
    return list(matplotlib.colormaps["viridis"](np.linspace(0.05, 0.95, count)))


def name_layers(axes: Axes, layers: Sequence[str]) -> None:
    """Ticks in the middle of the rows of a heat map, not more than are legible."""
    step = max(1, -(-len(layers) // 16))
    axes.set_yticks(np.arange(len(layers))[::step] + 0.5, list(layers)[::step])
    axes.set_ylabel("layer")


def relative_load(counts_LN: Array) -> Array:
    """Of every row: counts over their mean, for :func:`load_colours`; masked if all are zero."""
    counts = counts_LN.astype(float)
    mean_L1 = counts.mean(1, keepdims=True)
    relative = np.maximum(counts / np.where(mean_L1 == 0, 1, mean_L1), LEAST_LOAD)
    relative[counts_LN == 0] = LEAST_LOAD / 2
    return np.ma.masked_where(np.broadcast_to(mean_L1 == 0, counts.shape), relative)


LEAST_LOAD, MOST_LOAD = 0.25, 4.0
"""Ends of the colours; beyond them only no token at all looks different."""


def load_colours() -> dict[str, Any]:
    """Colours for load over mean load: white at 1, black where there was no token."""
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(under=NO_TOKEN, bad="#dddddd")
    return {"cmap": colours, "norm": LogNorm(vmin=LEAST_LOAD, vmax=MOST_LOAD)}


def load_bar(fig: Figure, mesh: Any, label: str, **where: Any) -> None:
    """The colour bar of :func:`load_colours`."""
    bar = fig.colorbar(mesh, label=label, extend="min", **where)
    bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["1/4", "1/2", "1", "2", "4"])
    bar.minorticks_off()
