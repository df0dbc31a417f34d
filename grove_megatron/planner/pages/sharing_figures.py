"""Figures of what sharing saves: rows that are sent once, adjugates that are computed once."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from ...model.selection import ffn_per_token
from ...report import draw
from ...report.shown import Drawn
from .figures import time_unit
from .planned import Comparison
from .sharing import WAYS, Dispatch, Grouping, dispatches, groupings

# Colour and words of every way to send rows.
_WAYS = {
    "stock": (draw.GRAY, "Megatron's all-to-all: one to every expert"),
    "flat": (draw.BLUE, "dedup: one to every rank"),
    "hierarchical": (draw.GREEN, "hierarchical: one to every node"),
}


def dedup(comparison: Comparison) -> Drawn:
    """Rows of a token at every expert-parallel size, what crosses nodes, and seconds."""
    title = "Where dedup pays"
    sizes = comparison.first.sizes
    found = dispatches(sizes, comparison.cluster)
    if not found:
        return Drawn("dedup", title, "The model has no experts: nothing is dispatched.", None)
    fig = draw.figure(4.6)
    sent, far, cost = fig.subplots(1, 3)
    ranks = [*dict.fromkeys(one.ranks for one in found)]
    scale, unit = time_unit(max(one.seconds for one in found))
    for way in WAYS:
        of_way = [one for one in found if one.way == way]
        at = [ranks.index(one.ranks) for one in of_way]
        if way != "hierarchical":
            _line(sent, way, at, [one.rows for one in of_way])
        _line(far, way, at, [one.far for one in of_way])
        _line(cost, way, at, [one.seconds / scale for one in of_way])
    for axes, title_of in (
        (sent, "rows per token and layer"),
        (far, "of them to other nodes"),
        (cost, f"{unit} of an iteration"),
    ):
        axes.set_title(title_of)
        _over_ranks(axes, ranks, sizes.layout.expert)
        draw.from_zero(axes)
    handles, labels = cost.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=3)
    return Drawn("dedup", title, _read_dedup(comparison, found), fig)


def _read_dedup(comparison: Comparison, found: Sequence[Dispatch]) -> str:
    own, domain = comparison.first.sizes.layout.expert, comparison.cluster.domain
    by_size = {(one.ranks, one.way): one for one in found}
    # The layout's own size, unless nothing is sent there.
    shown = own if own > 1 and (own, "flat") in by_size else found[-1].ranks
    stock, flat = (by_size[shown, way] for way in ("stock", "flat"))
    read = (
        f"A token has {stock.rows:.3g} experts. Where several of them lie on one rank it is sent "
        f"there once: {flat.rows:.3g} rows at {shown} ranks. Groups of up to {domain} ranks stay "
        "inside of a node"
    )
    if several := [one for one in found if one.way == "hierarchical"]:
        last = several[-1].ranks
        stock_far, flat_far, nodes_far = (by_size[last, way].far for way in WAYS)
        read += (
            f"; in larger ones a token can go to every node once: at {last} ranks {nodes_far:.3g} "
            f"rows leave a node, and not {flat_far:.3g} (stock {stock_far:.3g})"
        )
    return read + (
        ". Right: the time of all dispatches and combines of a rank, forward and backward, with "
        "the tokens of the best layout and the bandwidths below, as if nothing were hidden. "
        f"Dotted: its expert-parallel size, {own}. Uniform routing; experts that are "
        "chosen together on one rank need fewer rows."
    )


def _line(axes: Axes, way: str, at: Sequence[int], values: Sequence[float]) -> None:
    colour, label = _WAYS[way]
    axes.plot(at, values, color=colour, marker="o", markersize=4, label=label)


def _over_ranks(axes: Axes, ranks: Sequence[int], own: int) -> None:
    axes.set_xlabel("expert-parallel ranks")
    _sizes(axes, ranks)
    if own in ranks:
        axes.axvline(ranks.index(own), color=draw.GRAY, linewidth=1, linestyle=":")


def _sizes(axes: Axes, sizes: Sequence[int]) -> None:
    """Ticks of sizes, not more than are legible."""
    step = -(-len(sizes) // 12)
    axes.set_xticks(range(0, len(sizes), step), [str(size) for size in sizes[::step]], fontsize=9)
    axes.set_xlim(-0.4, len(sizes) - 0.6)


def grouping(comparison: Comparison) -> Drawn:
    """Distinct groups of a token over their number, and what the adjugates cost."""
    title, model = "Group size and sharing", comparison.model
    found = groupings(model, comparison.first.sizes.training.sequence_length)
    if not found:
        return Drawn("grouping", title, "The model has no experts, and so no groups.", None)
    numbers = [one.groups for one in found]
    fig = draw.figure(4.2)
    both = fig.subplots(1, 2 if model.num_groups else 1, squeeze=False)[0]
    met = both[0]
    experts = ffn_per_token(model)
    met.plot([one.met for one in found], color=draw.BLUE, marker="o", markersize=4, label="groups")
    met.axhline(experts, color=draw.GRAY, linestyle="--", label=f"experts: {experts:.3g}")
    met.set_title("distinct groups of a token")
    if model.num_groups:
        _cost(both[1], found)
    draw.from_zero(met)
    for axes in both:
        axes.set_xlabel(f"groups that the {model.num_experts} experts are in")
        _sizes(axes, numbers)
        if model.num_groups:
            _mark(axes, numbers.index(model.num_groups))
        draw.legend(axes)
    return Drawn("grouping", title, _read_grouping(comparison, found), fig)


def _cost(axes: Axes, found: Sequence[Grouping]) -> None:
    axes.plot(
        [one.share_per_expert for one in found],
        color=draw.GRAY,
        linestyle="--",
        label="computed once for every expert",
    )
    axes.plot(
        [one.share for one in found],
        color=draw.ORANGE,
        marker="o",
        markersize=4,
        label="computed once for every group",
    )
    # Without sharing few wide groups cost far more than is of interest.
    shared = max(one.share for one in found)
    axes.set_title("operations of the adjugates")
    axes.set_ylabel("of all others of a token")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, 1.6 * shared or 1.0)


def _mark(axes: Axes, place: int) -> None:
    axes.axvline(place, color=draw.GREEN, linewidth=1.2, linestyle=":", label="this model")


def _read_grouping(comparison: Comparison, found: Sequence[Grouping]) -> str:
    model = comparison.model
    if not model.num_groups:
        return (
            "The experts are not in groups. Were they, a token would need one adjugate for every "
            "group that its experts are in: the fewer the groups, the more experts share one."
        )
    own = next(one for one in found if one.groups == model.num_groups)
    return (
        f"This model has {own.groups} groups of {model.num_experts // own.groups} experts: a token "
        f"of {ffn_per_token(model):.3g} experts meets {own.met:.3g} of them, and computes as many "
        f"adjugates of width {own.width:g}, which add {own.share:.2%} to its operations. Right: "
        "all adjugates together are as large everywhere, so that half as many groups have "
        "adjugates twice as wide. Few groups are shared by more experts, yet nearly every token "
        "needs nearly all of them."
    )
