"""Drawing that several figures share: lines over iterations, heat maps, one style."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from .arrays import Array
from .record import Interval, Run
from .series import edges, resumed, with_gaps
from .view import by_layout, layout_changes

WIDTH = 11.0
"""Of a figure, in inches."""
HALF = 5.4
"""Of one of two side by side."""
DPI = 110

BLUE, ORANGE, GREEN, GRAY = "#1f6fb4", "#e07b1a", "#2b8a3e", "#666666"
COLOURS = (
    *(BLUE, ORANGE, GREEN, "#c92a2a", "#7048a8", "#12a594", "#d6409f", "#8a5a2b", "#9a9a1f"),
    "#444444",
)
"""Of lines that are many."""
NO_TOKEN, NOT_RECORDED, ABOVE, BELOW = "#000000", "#d0d0d0", "#f2a900", "#12a594"
# Colours of a heat map: the word and the colour for what is above its end.
_OVER = {"viridis": ("red", "#d62728"), "Reds": ("black", "#000000")}

_STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 10,
    # Names of folders, runs and losses are text, whatever is in them.
    "text.parse_math": False,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
}


def panels(
    rows: int, columns: int, height: float, width: float = WIDTH
) -> tuple[Figure, Any, Axes]:
    """Many small panels with the same axes, and beside them those of a colour bar.

    Margins are given in inches: the constrained layout takes seconds for as many panels.
    """
    above, below, left, right, title = 0.3, 0.9, 0.75, 1.0, 0.35
    total = above + below + rows * height + (rows - 1) * title
    fig = Figure(figsize=(width, total))
    grid = fig.add_gridspec(
        rows,
        columns,
        left=left / width,
        right=1 - right / width,
        bottom=below / total,
        top=1 - above / total,
        wspace=0.12,
        hspace=title / height,
    )
    bar = min(6.0, total - above - below)
    place = (1 - 0.8 / width, (total + below - above - bar) / 2 / total, 0.2 / width, bar / total)
    return fig, grid.subplots(sharex=True, sharey=True, squeeze=False), fig.add_axes(place)


@contextmanager
def style() -> Iterator[None]:
    """The look of a report's figures; matplotlib's settings are as before afterwards."""
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def figure(height: float, width: float = WIDTH) -> Figure:
    """A figure that no window shows."""
    return Figure(figsize=(width, height), layout="constrained")


def over_iterations(axes: Axes, intervals: Sequence[Interval], label: str) -> None:
    """Name the axes, and mark where another process went on, and with which other layout."""
    axes.set_xlabel("iteration")
    axes.set_ylabel(label)
    begin, *_, end = edges(intervals)
    axes.set_xlim(begin, end)
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    for iteration in resumed(intervals):
        axes.axvline(iteration, color=GRAY, linewidth=0.8, linestyle=":")
    for iteration, change in layout_changes(intervals).items():
        axes.annotate(
            change,
            (iteration, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -3),
            textcoords="offset points",
            va="top",
            fontsize=9,
            color=GRAY,
        )


def reference(
    axes: Axes, intervals: Sequence[Interval], expected: Callable[[Run], float], label: str
) -> None:
    """What is expected of every layout, as a dashed line over its own iterations."""
    values = [expected(interval.run) for interval in intervals]
    numbers = {name: expected(run) for name, run in by_layout(intervals).items()}
    if len(set(numbers.values())) == 1:
        shown = f"{values[0]:.2f}"
    else:
        shown = ", ".join(f"{number:.2f} ({name})" for name, number in numbers.items())
    steps = with_gaps(intervals, np.array(values))
    axes.stairs(
        steps,
        edges(intervals),
        baseline=None,
        color=GRAY,
        linestyle="--",
        linewidth=1.2,
        label=f"{label}: {shown}",
    )


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
    least: float,
    colours: str = "viridis",
    integer: bool = False,
) -> None:
    """A heat map from 0, iterations to the right and layers upwards, with its colour bar.

    The colours end where the highest fiftieth of the values begins: the first iterations of a
    training would otherwise take them all. What is above has a colour of its own.

    Args:
        least: where the colours end at the least, so that little does not look like much.
    """
    values_LI = np.ma.masked_invalid(with_gaps(intervals, values_IL).T)
    layers = intervals[0].run.layers
    seen = values_LI.compressed()
    top = max(float(np.quantile(seen, 0.98)) if seen.size else 0.0, least)
    highest = float(seen.max(initial=0))
    word, over = _OVER[colours]
    cmap = matplotlib.colormaps[colours].with_extremes(over=over)
    mesh = axes.pcolormesh(
        edges(intervals), np.arange(len(layers) + 1), values_LI, cmap=cmap, vmin=0, vmax=top
    )
    axes.set_facecolor(NOT_RECORDED)
    axes.grid(False)
    axes.set_xlabel("iteration")
    name_layers(axes, layers)
    clipped = highest > top
    if clipped:
        label += f"\n({word}: above, up to {highest:.3g})"
    bar = axes.figure.colorbar(
        mesh, ax=axes, label=label, pad=0.02, extend="max" if clipped else "neither"
    )
    if integer:
        bar.locator = MaxNLocator(integer=True)
        bar.update_ticks()


def from_zero(axes: Axes, least: float = 0.0) -> None:
    """Have the axis of numbers begin at 0, with some room above the highest and at least there."""
    top = float(axes.dataLim.ymax)
    axes.set_ylim(0, max(1.12 * top if 0 < top < np.inf else 1, least))


def at_least(axes: Axes, low: float, high: float) -> None:
    """Show at least this range, so that a little does not look like much, and all of the data."""
    bottom, top = float(axes.dataLim.ymin), float(axes.dataLim.ymax)
    if np.isfinite([bottom, top]).all():
        low, high = min(low, bottom), max(high, top)
    room = 0.05 * (high - low) or 1
    axes.set_ylim(low - room, high + room)


def around(axes: Axes, share: float) -> None:
    """Show at least this share of the data's own size, up and down."""
    bottom, top = float(axes.dataLim.ymin), float(axes.dataLim.ymax)
    if np.isfinite([bottom, top]).all():
        middle = (bottom + top) / 2
        at_least(axes, middle - share * abs(middle), middle + share * abs(middle))


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


def load_map(axes: Axes, x: Array, y: Array, counts_NM: Array, over: int) -> Any:
    """Counts over the mean of their layer, as a heat map with its own colours.

    Args:
        x, y: edges of the columns and rows.
        counts_NM: one count for every row and column; a layer's are those along ``over``.
        over: the axis; where all along it are 0 nothing was recorded.
    """
    counts = counts_NM.astype(float)
    mean = counts.mean(over, keepdims=True)
    nothing = np.broadcast_to(mean == 0, counts.shape)
    relative = np.ma.masked_where(counts == 0, counts / np.where(mean == 0, 1, mean))
    mesh = ratio_map(axes, x, y, relative)
    without = np.ma.masked_where((counts > 0) | nothing, np.ones_like(counts))
    axes.pcolormesh(x, y, without, cmap=ListedColormap([NO_TOKEN]), rasterized=True)
    return mesh


def ratio_map(axes: Axes, x: Array, y: Array, ratio_NM: Any) -> Any:
    """Ratios as a heat map, in the colours of :func:`load_map`; what is masked is not recorded."""
    axes.set_facecolor(NOT_RECORDED)
    axes.grid(False)
    norm = LogNorm(vmin=LEAST_LOAD, vmax=MOST_LOAD)
    return axes.pcolormesh(x, y, ratio_NM, cmap=_LOAD, norm=norm, rasterized=True)


LEAST_LOAD, MOST_LOAD = 0.25, 4.0
"""Ends of the colours of load over mean load."""

# Blue and red end well before black, which is for no token at all.
_LOAD = LinearSegmentedColormap.from_list(
    "load", matplotlib.colormaps["RdBu_r"](np.linspace(0.1, 0.9, 256))
).with_extremes(under=BELOW, over=ABOVE)
LOAD_READ = (
    "White: as many tokens as the mean of its layer; red: more, orange: more than 4 times as many; "
    "blue: fewer, green: less than a quarter; black: not one token in that interval."
)


def load_bar(fig: Figure, mesh: Any, **where: Any) -> None:
    """The colour bar of :func:`load_map`, and what its other colours are."""
    ratio_bar(fig, mesh, "load / mean of the layer", **where)
    others = {"above 4": ABOVE, "below 1/4": BELOW, "no token": NO_TOKEN}
    others["not recorded"] = NOT_RECORDED
    fig.legend(
        handles=[Patch(color=colour, label=name) for name, colour in others.items()],
        loc="outside lower right" if fig.get_layout_engine() else "lower right",
        ncols=4,
        handlelength=1,
        handleheight=1,
    )


def ratio_bar(fig: Figure, mesh: Any, label: str, **where: Any) -> None:
    """The colour bar of :func:`ratio_map`."""
    bar = fig.colorbar(mesh, label=label, extend="both", **where)
    bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["1/4", "1/2", "1", "2", "4"])
    bar.minorticks_off()
