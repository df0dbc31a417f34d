"""Figures of loss, load and balance."""

from collections.abc import Sequence
from math import ceil

import numpy as np

from . import draw
from .measures import Idle
from .record import Interval
from .series import edges, span, with_gaps
from .shown import Drawn, Shown


def loss(intervals: Sequence[Interval]) -> Drawn:
    """Every loss that Megatron summed, the language model's first and largest."""
    title = "Loss"
    names = sorted(
        {name for i in intervals for name in i.losses}, key=lambda name: (name != "lm loss", name)
    )
    if not names:
        return Drawn("loss", title, "The record holds no losses.", None)
    fig = draw.figure(3.6 + 1.9 * (len(names) > 1))
    main, others = names[0], names[1:]
    heights = [2, 1] if others else [1]
    grid = fig.add_gridspec(len(heights), max(1, len(others)), height_ratios=heights)
    places = [grid[0, :], *(grid[1, i] for i in range(len(others)))]
    for name, place in zip(names, places, strict=True):
        axes = fig.add_subplot(place)
        values = np.array([i.losses.get(name, np.nan) for i in intervals])
        draw.line(axes, intervals, values, draw.BLUE, name)
        draw.over_iterations(axes, intervals, "nats per token" if name == "lm loss" else name)
        axes.set_title(main if name == main else name)
    read = (
        "Means over the intervals of the record, of what Megatron prints, losses of MTP layers "
        "excepted. Look for jumps of the loss here before looking for their reason below. Dotted "
        "lines: a process was started anew. Where a line is broken nothing was recorded."
    )
    return Drawn("loss", title, read, fig)


def load_over_time(shown: Shown) -> Drawn:
    """A small heat map for every layer."""
    intervals = shown.intervals
    layers = intervals[0].run.layers
    columns = min(len(layers), 8)
    rows = ceil(len(layers) / columns)
    fig, cells, beside = draw.panels(rows, columns, height=max(1.45, 2.6 / rows))
    # So that the middle of an expert's row is at its number.
    x, y = edges(intervals), np.arange(intervals[0].run.experts + 1) - 0.5
    mesh = None
    for index, axes in enumerate(cells.flat):
        if index >= len(layers):
            axes.set_visible(False)
            continue
        counts_IE = with_gaps(intervals, np.stack([i.experts[index] for i in intervals]), 0)
        relative = draw.relative_load(counts_IE)
        mesh = axes.pcolormesh(x, y, relative.T, rasterized=True, **draw.load_colours())
        axes.grid(False)
        axes.set_title(f"layer {layers[index]}", fontsize=9, fontweight="normal")
        draw.few_ticks(axes)
    fig.supxlabel("iteration", fontsize=10)
    fig.supylabel("expert", fontsize=10)
    draw.load_bar(fig, mesh, "load / mean of the layer (black: none)", cax=beside)
    read = (
        "Every row of a panel is an expert. White: as many tokens as the mean of its layer; red: "
        "more; blue: fewer; black: not one token in that interval. Rows that stay red or blue are "
        "experts that balancing does not reach; stripes from top to bottom are batches unlike the "
        "others."
    )
    return Drawn("load-over-time", "Load of every expert over time", read, fig)


def load_now(shown: Shown) -> Drawn:
    """All layers in the last interval: experts, and adjugates."""
    last = shown.last
    layers = last.run.layers
    fig = draw.figure(1.6 + max(2.0, 0.1 * len(layers)))
    cells = fig.subplots(1, 2, width_ratios=[3, 2])
    pairs = [("expert", last.experts), ("adjugate (= group)", last.groups)]
    mesh = None
    for axes, (name, counts) in zip(cells, pairs, strict=True):
        y = np.arange(len(layers) + 1)
        x = np.arange(counts.shape[1] + 1) - 0.5
        mesh = axes.pcolormesh(x, y, draw.relative_load(counts), **draw.load_colours())
        axes.grid(False)
        axes.set_xlabel(name)
        axes.locator_params(axis="x", integer=True)
        axes.set_title(f"{name.split()[0]}s")
        draw.name_layers(axes, layers)
    draw.load_bar(fig, mesh, "load / mean of the layer (black: none)", ax=cells, pad=0.02)
    read = (
        f"Iterations {span(last)}, colours as above. Left the routed pairs of every expert, right "
        "the tokens of every adjugate. Where the experts of a group are balanced its adjugate "
        "mostly is, too; one that stands out more than its experts serves tokens that seldom "
        "choose two of its group."
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
        draw.band(left, shown.intervals, shown.measures[name], colour, label)
    draw.over_iterations(left, shown.intervals, "MaxVio = most / mean - 1")
    draw.from_zero(left)
    left.set_title("mean over layers, and their range")
    draw.legend(left)
    draw.layers_over_time(
        right, shown.intervals, shown.measures["max_vio"], "MaxVio of the experts"
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
    idle = np.array([seen.see(interval).max(initial=0) for interval in shown.every])
    fig = draw.figure(4.6)
    grid = fig.add_gridspec(2, 2)
    number, time = (fig.add_subplot(grid[row, 0]) for row in range(2))
    right = fig.add_subplot(grid[:, 1])
    draw.line(number, shown.intervals, np.nansum(dead_IL, 1), draw.ORANGE, "")
    draw.over_iterations(number, shown.intervals, "experts")
    number.set_title("experts without a token, all layers")
    draw.line(time, shown.every, idle, draw.BLUE, "")
    draw.over_iterations(time, shown.every, "iterations")
    time.set_title("longest time that an expert has been without")
    for axes in (number, time):
        draw.from_zero(axes)
    draw.layers_over_time(right, shown.intervals, dead_IL, "dead experts", "Reds", integer=True)
    right.set_title("layer by layer")
    read = (
        "A dead expert got no token in a whole interval, so it learned nothing. Some in the first "
        "iterations are usual; a number that does not fall, or a longest time that keeps rising, "
        "means capacity that is paid for and not used: raise the balancing."
    )
    return Drawn("dead", title, read, fig)
