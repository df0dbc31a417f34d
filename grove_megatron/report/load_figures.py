"""Figures of load and balance."""

from math import ceil

import numpy as np

from . import draw
from .measures import Idle
from .series import edges, span, with_gaps
from .shown import Drawn, Shown


def load_over_time(shown: Shown, width: float = draw.WIDTH) -> Drawn:
    """A small heat map for every layer."""
    intervals = shown.intervals
    layers = intervals[0].run.layers
    columns = min(len(layers), 8 if width == draw.WIDTH else 3)
    rows = ceil(len(layers) / columns)
    fig, cells, beside = draw.panels(rows, columns, max(1.45, 2.6 / rows), width)
    # So that the middle of an expert's row is at its number.
    x, y = edges(intervals), np.arange(intervals[0].run.experts + 1) - 0.5
    mesh = None
    for index, axes in enumerate(cells.flat):
        if index >= len(layers):
            axes.set_visible(False)
            continue
        counts_IE = with_gaps(intervals, np.stack([i.experts[index] for i in intervals]), 0)
        mesh = draw.load_map(axes, x, y, counts_IE.T, over=0)
        axes.set_title(f"layer {layers[index]}", fontsize=9, fontweight="normal")
        draw.few_ticks(axes)
    # Above the key of the colours.
    fig.supxlabel("iteration", fontsize=10, y=0.38 / fig.get_figheight())
    fig.supylabel("expert", fontsize=10)
    draw.load_bar(fig, mesh, cax=beside)
    read = (
        f"Every row of a panel is an expert. {draw.LOAD_READ} Rows that stay red or blue are "
        "experts that balancing does not reach; stripes from top to bottom are batches unlike the "
        "others."
    )
    return Drawn("load-over-time", "Load of every expert over time", read, fig)


def load_now(shown: Shown, width: float = draw.WIDTH) -> Drawn:
    """All layers in the last interval: experts, and adjugates."""
    last = shown.last
    layers = last.run.layers
    fig = draw.figure(1.9 + max(2.0, 0.1 * len(layers)), width)
    pairs = [("expert", last.experts)]
    if last.run.groups:
        pairs.append(("adjugate (= group)", last.groups))
    cells = fig.subplots(1, len(pairs), width_ratios=[3, 2][: len(pairs)], squeeze=False)[0]
    mesh = None
    for axes, (name, counts) in zip(cells, pairs, strict=True):
        y = np.arange(len(layers) + 1)
        x = np.arange(counts.shape[1] + 1) - 0.5
        mesh = draw.load_map(axes, x, y, counts, over=1)
        axes.set_xlabel(name)
        axes.locator_params(axis="x", integer=True)
        axes.set_title(f"{name.split()[0]}s")
        draw.name_layers(axes, layers)
    draw.load_bar(fig, mesh, ax=cells, pad=0.02)
    read = f"Iterations {span(last)}, colours as above. "
    if not last.run.groups:
        return Drawn("load-now", "Load of experts now", read, fig)
    read += (
        "Left the routed pairs of every expert, right the tokens of every adjugate. Where the "
        "experts of a group are balanced its adjugate mostly is, too; one that stands out more "
        "than its experts serves tokens that seldom choose two of its group."
    )
    return Drawn("load-now", "Load of experts and adjugates now", read, fig)


def balance(shown: Shown) -> Drawn:
    """MaxVio of experts, groups and adjugates."""
    fig = draw.figure(4.0)
    left, right = fig.subplots(1, 2)
    for name, colour, label in (
        ("max_vio", draw.BLUE, "experts"),
        ("group_max_vio", draw.ORANGE, "groups (their experts' pairs)"),
        ("adjugate_max_vio", draw.GREEN, "adjugates (their tokens)"),
    ):
        if name in shown.measures:
            draw.band(left, shown.intervals, shown.measures[name], colour, label)
    draw.over_iterations(left, shown.intervals, "MaxVio = most / mean - 1")
    draw.from_zero(left, 0.5)
    left.set_title("mean over layers, and their range")
    draw.legend(left)
    draw.layers_over_time(
        right, shown.intervals, shown.measures["max_vio"], "MaxVio of the experts", least=0.5
    )
    right.set_title("experts, layer by layer")
    read = (
        "MaxVio is how much more than the mean the busiest one got: 0 is perfect balance, 1 means "
        "twice the mean. It should fall in the first hundreds of iterations and stay low; one "
        "layer that stays bright on the right is one to look at above. Short intervals have a "
        "higher MaxVio than long ones, by chance alone."
    )
    return Drawn("balance", "Balance", read, fig)


def dead(shown: Shown) -> Drawn:
    """Experts without tokens."""
    title = "Dead experts"
    dead_IL = shown.measures["dead_experts"]
    if not np.nansum(dead_IL):
        return Drawn("dead", title, "No expert was without tokens in any interval.", None)
    seen = Idle()
    idle = np.array([seen.see(interval).max(initial=0) for interval in shown.view.intervals])
    fig = draw.figure(4.6)
    grid = fig.add_gridspec(2, 2)
    number, time = (fig.add_subplot(grid[row, 0]) for row in range(2))
    right = fig.add_subplot(grid[:, 1])
    draw.line(number, shown.intervals, np.nansum(dead_IL, 1), draw.ORANGE, "")
    draw.over_iterations(number, shown.intervals, "experts")
    number.set_title("experts without a token, all layers")
    draw.line(time, shown.view.intervals, idle, draw.BLUE, "")
    draw.over_iterations(time, shown.view.intervals, "iterations")
    time.set_title("longest time that an expert has been without")
    for axes in (number, time):
        draw.from_zero(axes, 2)
    draw.layers_over_time(right, shown.intervals, dead_IL, "dead experts", 2, "Reds", integer=True)
    right.set_title("layer by layer")
    read = (
        "A dead expert got no token in a whole interval, so it learned nothing. Some in the first "
        "iterations are usual; a number that does not fall, or a longest time that keeps rising, "
        "means capacity that is paid for and not used: raise the balancing."
    )
    return Drawn("dead", title, read, fig)
