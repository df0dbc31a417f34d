"""Figures of layouts beside one another: where their time goes, and their memory."""

from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ...report import draw
from ...report.shown import Drawn
from ..memory import MARGIN
from ..speed.cluster import GIB
from .planned import Comparison, Place, fitting, memory_parts, names_of, places, too_large

# Of a bar and of all around them, in inches.
_BAR, _AROUND = 0.32, 1.6
_UNITS = ((1.0, "seconds"), (1e-3, "milliseconds"), (1e-6, "microseconds"))
# What does not fit is drawn up to here; its number says how much it is.
_MOST_OF_LIMIT = 2.2
_LIMIT = "#c92a2a"
# Of a legend: what its width has room for, and what is around a word.
_CHARACTERS, _AROUND_WORD = 120, 5
# Blue and green compute, red to yellow is communication.
TIME = {
    "products": "#123f73",
    "attention": draw.BLUE,
    "experts": "#58a6dd",
    "adjugates": "#a9d5f2",
    "pointwise": "#0b7a6c",
    "router": "#3fbfae",
    "loss": "#a5e3d8",
    "starts": "#d6e4d2",
    "recompute": draw.GREEN,
    "dispatch": "#c92a2a",
    "tensor": draw.ORANGE,
    "context": "#f6b26b",
    "pipeline": "#f7d94c",
    "gradients": "#f08c8c",
    "host": "#8c8c8c",
    "bubble": "#b9b9b9",
    "optimizer": "#7048a8",
    "other": "#444444",
}
MEMORY = {
    "weights": draw.BLUE,
    "gradients": draw.ORANGE,
    "optimizer": draw.GREEN,
    "activations": "#5a4fcf",
    "activations: attention": "#4b2a7b",
    "activations: experts": "#7048a8",
    "activations: dispatcher": "#a17fd0",
    "activations: router": "#cdb8ea",
    "activations: output": "#d6409f",
    "activations: other": "#f0a8d0",
}


def time(comparison: Comparison) -> Drawn:
    """Seconds of an iteration by part, of the best layouts that fit."""
    title, shown = "Where the time goes", fitting(comparison)
    if not shown:
        return Drawn("time", title, "No layout fits into the memory of a GPU.", None)
    steps = [place.plan.step for place in shown]
    totals = [place.plan.seconds for place in shown]
    scale, unit = time_unit(max(totals))
    fig = draw.figure(_AROUND + _BAR * len(shown))
    axes = fig.subplots()
    colours = _colours(names_of(steps), TIME)
    _bars(axes, shown, steps, colours, scale)
    axes.set_xlim(0, 1.02 * (max(totals) / scale or 1.0))
    words = [
        f"{place.plan.seconds / scale:,.2f}; {place.plan.per_gpu:,.0f} tokens/s a GPU; "
        f"MFU {place.plan.mfu:.1%}"
        for place in shown
    ]
    _beside(axes, words)
    axes.set_xlabel(f"{unit} of an iteration")
    _legend(axes, colours)
    read = (
        f"One bar is one iteration, the best layout on top ({shown[0].plan.bottleneck}). Blue and "
        "green compute, red to yellow moves data between GPUs and is not hidden, gray waits. A "
        "long bubble asks for more microbatches, virtual stages or fewer stages; long "
        "communication for smaller groups of ranks, or for overlap."
    ) + _count(comparison, shown, "that fit")
    return Drawn("time", title, read, fig)


def memory(comparison: Comparison) -> Drawn:
    """GiB of the rank that needs most by part, beside what a GPU has."""
    shown = [*fitting(comparison), *too_large(comparison)]
    limit = comparison.cluster.memory / GIB
    parts = [memory_parts(place.plan.memory) for place in shown]
    fig = draw.figure(_AROUND + _BAR * len(shown))
    axes = fig.subplots()
    colours = _colours(names_of(parts), MEMORY)
    _bars(axes, shown, parts, colours, GIB)
    margins = [place.plan.memory.with_margin / GIB for place in shown]
    end = max(1.1 * limit, min(1.02 * max(margins), _MOST_OF_LIMIT * limit))
    axes.plot(margins, range(len(shown)), "|", color="black", markersize=9)
    _beside(axes, [f"{margin:,.1f}" for margin in margins])
    axes.axvline(limit, color=_LIMIT, linewidth=1.6)
    axes.set_xlim(0, end)
    axes.set_xlabel("GiB on a rank of the stage that needs most")
    _legend(
        axes,
        colours,
        Line2D([], [], color=_LIMIT, linewidth=1.6, label=f"a GPU: {limit:g} GiB"),
        Line2D(
            [], [], color="black", marker="|", linestyle="", label=f"with a margin of {MARGIN:.0%}"
        ),
        *[Patch(facecolor="white", edgecolor="black", hatch="////", label="does not fit")]
        * bool(too_large(comparison)),
    )
    read = (
        "A layout fits where its black mark is left of the red line: it is the bar and "
        f"{MARGIN:.0%} more, for the allocator and for workspaces. On the right: both together."
    )
    if others := too_large(comparison):
        read += (
            f" Hatched: layouts that do not fit, the {len(others)} of them that need least; what "
            "is longest in them is what to divide further."
        )
    return Drawn("memory", "Memory beside the limit", read + _count(comparison, shown, ""), fig)


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit that a number of seconds is at least 1 of, and how many seconds it is."""
    return next((u for u in _UNITS if seconds >= u[0]), _UNITS[-1] if seconds else _UNITS[0])


def _count(comparison: Comparison, shown: Sequence[Place], which: str) -> str:
    every = places(comparison)
    if which:
        every = [place for place in every if place.plan.fits]
    if len(every) == len(shown):
        return ""
    return f" {len(shown)} of {len(every):,} layouts{f' {which}' if which else ''} are drawn."


def _bars(
    axes: Axes,
    shown: Sequence[Place],
    parts: Sequence[Mapping[str, float]],
    colours: Mapping[str, str],
    scale: float,
) -> None:
    """A stacked bar for every place, the first on top; hatched where it does not fit."""
    rows = range(len(shown))
    left = [0.0] * len(shown)
    for name, colour in colours.items():
        widths = [one.get(name, 0.0) / scale for one in parts]
        bars = axes.barh(rows, widths, 0.72, left=left, color=colour, linewidth=0)
        for bar, place in zip(bars, shown, strict=True):
            if not place.plan.fits:
                bar.set(hatch="////", edgecolor="white")
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.set_yticks(rows, [place.label for place in shown], fontsize=9)
    # Half a bar above and below, also of one.
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(False, axis="y")


def _beside(axes: Axes, words: Sequence[str]) -> None:
    """Write what belongs to a bar in a column on the right."""
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    right.set_yticks(range(len(words)), words, fontsize=9)
    right.tick_params(length=0)
    right.grid(False)


def _colours(names: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Of every name, in the order of those known; the others come last."""
    others = [name for name in names if name not in known]
    found = {name: colour for name, colour in known.items() if name in names}
    return found | dict(zip(others, cycle(draw.COLOURS), strict=False))


def _legend(axes: Axes, colours: Mapping[str, str], *more: Line2D | Patch) -> None:
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    words = [str(one.get_label()) for one in (*handles, *more)]
    if not words:
        return
    # In one row if there is room, else in columns as wide as the longest needs.
    one_row = sum(map(len, words)) + _AROUND_WORD * len(words) <= _CHARACTERS
    columns = len(words) if one_row else _CHARACTERS // (max(map(len, words)) + _AROUND_WORD)
    axes.figure.legend(
        handles=[*handles, *more],
        loc="outside upper center",
        ncols=max(1, columns),
        handlelength=1.2,
    )
