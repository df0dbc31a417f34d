"""The figure of co-activation."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from . import draw
from .arrays import Array
from .coactivation import (
    blocks,
    counted_pairs,
    expected_pairs,
    share_inside,
    strongest_layer,
    strongest_pairs,
    together_order,
)
from .series import span
from .shown import Drawn, Shown

_NAMED = 3


def coactivation(shown: Shown) -> Drawn:
    """The layer where it is strongest as a map, in two orders, and all layers as lines."""
    title = "Groups and experts met together"
    recorded = [i for i in shown.intervals if i.coactivation is not None]
    if not recorded:
        read = (
            "Not recorded; --grove-metrics-coactivation counts which groups tokens meet together."
        )
        return Drawn("coactivation", title, read, None)
    last = recorded[-1]
    together_LUU = np.asarray(last.coactivation)
    unit = "group" if last.run.groups else "expert"
    parts, units = blocks(last), last.run.units
    orders = [together_order(of, parts) for of in together_LUU]
    strongest = strongest_layer(together_LUU, orders, parts)
    layer = last.run.layers[strongest]
    together_UU = together_LUU[strongest]

    fig = draw.figure(4.2)
    left, middle, right = fig.subplots(1, 3, width_ratios=[4, 4, 3])
    mesh = None
    in_order = np.arange(units)
    for axes, order_U, name in (
        (left, in_order, f"layer {layer}"),
        (middle, orders[strongest], f"the same, in {parts} parts"),
    ):
        mesh = _map(axes, together_UU, order_U, unit)
        axes.set_title(name)
    edges = np.arange(1, parts) * (units // parts) - 0.5
    middle.vlines(edges, -0.5, units - 0.5, color=draw.GRAY, linewidth=0.5)
    middle.hlines(edges, -0.5, units - 0.5, color=draw.GRAY, linewidth=0.5)
    middle.set_xlabel(f"{unit}s, those met together in one part")
    draw.ratio_bar(fig, mesh, "tokens / expected", ax=[left, middle], pad=0.02)

    independent, counted, reordered = [], [], []
    for of_UU, order_U in zip(together_LUU, orders, strict=True):
        pairs_UU = counted_pairs(of_UU)
        independent.append(share_inside(expected_pairs(of_UU), in_order, parts))
        counted.append(share_inside(pairs_UU, in_order, parts))
        reordered.append(share_inside(pairs_UU, order_U, parts))
    y = np.arange(len(orders)) + 0.5
    for colour, label, values in (
        (draw.GRAY, "if independent", independent),
        (draw.BLUE, "as they are", counted),
        (draw.ORANGE, "reordered", reordered),
    ):
        right.plot(values, y, marker="o", markersize=3, linewidth=0.8, color=colour, label=label)
    draw.name_layers(right, last.run.layers)
    right.set_ylim(0, len(orders))
    right.set_xlim(left=0)
    right.set_xlabel("share of pairs in one part")
    right.set_title("all layers")
    draw.legend(right, fontsize=8)
    shares = [values[strongest] for values in (independent, counted, reordered)]
    read = (
        f"Iterations {span(last)}. A point is a pair of {unit}s: tokens that met both, over those "
        f"that would if they chose {unit}s independently and each as often as they did. Left in "
        f"order, in the middle so that pairs met together lie in one of {parts} parts, for the "
        f"layer where that gains most: there {shares[1]:.1%} of all pairs are inside a part, "
        f"{shares[2]:.1%} when reordered, and {shares[0]:.1%} would be by chance. Pairs inside a "
        "part share a row; some of what reordering gains here is noise of these counts. grove "
        "place makes a placement, judges it by other counts, and looks at the load. "
        f"{_pairs(together_UU, unit)}"
    )
    return Drawn("coactivation", title, read, fig)


def _map(axes: Axes, together_UU: Array, order_U: Array, unit: str) -> Any:
    counted, expected = counted_pairs(together_UU), expected_pairs(together_UU)
    known = expected > 0
    ratio = np.where(known, counted / np.where(known, expected, 1), np.nan)
    x = np.arange(len(order_U) + 1) - 0.5
    mesh = draw.ratio_map(axes, x, x, np.ma.masked_invalid(ratio[np.ix_(order_U, order_U)]))
    axes.set_xlabel(unit)
    axes.set_ylabel(unit)
    axes.set_aspect("equal")
    axes.locator_params(integer=True)
    return mesh


def _pairs(together_UU: Array, unit: str) -> str:
    said = [
        f"{a} and {b} by {counted:,} tokens, where {expected:,.0f} were expected"
        for a, b, counted, expected in strongest_pairs(together_UU, _NAMED)
        if counted > expected
    ]
    return f"Above all, {unit}s {'; '.join(said)}." if said else ""
