"""Figures of what tokens cause: sharing of adjugates, traffic, work of ranks, the expert bias."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from ..planner.traffic import distinct_range, expected_distinct
from . import draw
from .arrays import Array
from .expected import distribution, uniform_rows
from .record import Interval
from .series import edges, span, with_gaps
from .shown import Drawn, Shown
from .view import by_layout

_UNITS = ((1e9, "billion "), (1e6, "million "), (1e3, "thousand "), (1, ""))


def sharing(shown: Shown) -> Drawn:
    """Distinct groups per token: mean, distribution, and what it means for active parameters."""
    run, title = shown.last.run, "Sharing: groups per token"
    if not run.groups:
        return Drawn("sharing", title, "The experts are not in groups.", None)
    uniform = distribution(run.experts, run.topk, run.groups)
    fig = draw.figure(7.2)
    (mean, over_time), (now, active) = fig.subplots(2, 2)
    draw.band(mean, shown.intervals, shown.measures["groups_per_token"], draw.BLUE, "measured")
    expected = expected_distinct(run.experts, run.topk, run.groups)
    draw.reference(mean, shown.intervals, lambda _: expected, "uniform routing")
    draw.over_iterations(mean, shown.intervals, "distinct groups per token")
    least, most = distinct_range(run.experts, run.topk, run.groups)
    draw.at_least(mean, least, most)
    mean.set_title("groups per token, mean over layers and range")
    draw.legend(mean)

    met_ID = np.stack([i.sharing.sum(0) for i in shown.intervals]).astype(float)
    share_ID = met_ID / np.maximum(met_ID.sum(1, keepdims=True), 1)
    _stacked(over_time, shown.intervals, share_ID)
    over_time.set_title("share of tokens by groups met")

    number = np.arange(len(uniform))
    now.bar(number - 0.2, share_ID[-1], 0.4, color=draw.BLUE, label="last interval")
    now.bar(number + 0.2, uniform, 0.4, color="#bbbbbb", label="uniform routing")
    now.set_xticks(number)
    now.set_xlabel("distinct groups")
    now.set_ylabel("share of tokens")
    now.set_title("the last interval")
    draw.legend(now)

    parameters = shown.totals("active_parameters")
    unit, word = next(u for u in _UNITS if np.nanmax(parameters, initial=0) >= u[0] or u[0] == 1)
    draw.line(active, shown.intervals, parameters / unit, draw.BLUE, "")
    draw.over_iterations(active, shown.intervals, f"{word}parameters per token")
    active.set_title("active parameters")
    active.ticklabel_format(axis="y", useOffset=False)
    draw.from_zero(active)
    read = (
        f"A token that chooses {run.topk} of {run.experts} experts meets between {least} and "
        f"{most} of the {run.groups} groups, and needs the adjugate of each "
        f"once. Uniformly random routing gives {expected:.2f}; below that, experts that are chosen "
        "together sit in one group, and adjugates cost less. Active parameters count the experts "
        f"and adjugates that an average token used, of {sum(run.parameters):,}."
    )
    return Drawn("sharing", title, read, fig)


def traffic(shown: Shown) -> Drawn:
    """Rows sent beside routed pairs, and bytes."""
    intervals = shown.intervals
    fig = draw.figure(4.0)
    left, right = fig.subplots(1, 2)
    draw.band(left, intervals, shown.measures["pairs_per_token"], draw.GRAY, "routed pairs")
    draw.band(left, intervals, shown.measures["rows_per_token"], draw.BLUE, "rows sent")
    if "node_rows_per_token" in shown.measures:
        draw.band(
            left,
            intervals,
            shown.measures["node_rows_per_token"],
            draw.GREEN,
            "rows to nodes, before that",
        )
    draw.reference(left, intervals, uniform_rows, "rows of uniform routing")
    draw.over_iterations(left, intervals, "per token and layer")
    draw.from_zero(left)
    left.set_title("pairs and rows, mean over layers and range")
    draw.legend(left, loc="lower left")
    sent = shown.totals("sent_bytes_per_rank") / 2**20
    draw.line(right, intervals, sent, draw.BLUE, "")
    draw.over_iterations(right, intervals, "MiB per rank and iteration")
    draw.from_zero(right)
    right.set_title("hidden states that leave a rank")
    read = (
        "Two numbers. Routed pairs (token, expert) are the work of the experts. Rows are what is "
        f"sent for them{_sent_for(intervals)}Right: all rows that leave a rank, forth and back, "
        "forward and backward, those between ranks of expert tensor parallelism included."
    )
    return Drawn("traffic", "Traffic: rows and pairs", read, fig)


_HOW = {
    "alltoall": "a token goes to each of the {ranks} expert-parallel rank(s) that it needs once, "
    "however many of its experts are there; the row to the own rank counts among them. Fewer rows "
    "than pairs means shared rows, not dropped tokens. Megatron's own all-to-all sends a row for "
    "every pair",
    "allgather": "Megatron's all-gather brings every token to all {ranks} expert-parallel rank(s), "
    "whatever it chose; --moe-token-dispatcher-type alltoall sends it once to each rank it needs",
}


def _sent_for(intervals: Sequence[Interval]) -> str:
    """How rows are sent, of every layout there was."""
    ranks: dict[str, list[str]] = {}
    for run in by_layout(intervals).values():
        ranks.setdefault(run.dispatcher, []).append(str(run.ranks))
    # A name that is none of these is somebody else's text, and no format.
    ways = [
        _HOW[way].format(ranks=", then ".join(n)) if way in _HOW else f"by {way}"
        for way, n in ranks.items()
    ]
    return f": {'; otherwise '.join(ways)}. "


def ranks(shown: Shown) -> Drawn:
    """How unequal the work of the expert-parallel ranks is, where there were several."""
    title = "Expert-parallel ranks"
    several = [interval for interval in shown.intervals if interval.run.ranks > 1]
    if not several:
        return Drawn("ranks", title, "One expert-parallel rank: it has all the work.", None)
    last = several[-1]
    alone = np.array([interval.run.ranks == 1 for interval in shown.intervals])
    fig = draw.figure(4.0)
    left, right = fig.subplots(1, 2)
    for name, colour, label in (
        ("rank_pairs_imbalance", draw.BLUE, "routed pairs: what a rank computes"),
        ("rank_rows_imbalance", draw.ORANGE, "rows: what a rank receives"),
    ):
        values_IL = np.where(alone[:, None], np.nan, shown.measures[name])
        draw.band(left, shown.intervals, values_IL, colour, label)
    draw.over_iterations(left, shown.intervals, "most / mean over ranks")
    # Where there is nothing its limits are not finite.
    top = float(left.dataLim.ymax)
    left.set_ylim(1, max(1.25, 1 + 1.12 * (top - 1)) if top < np.inf else 2)
    left.set_title("imbalance, mean over layers and range")
    draw.legend(left)
    pairs_LR = last.experts.reshape(len(last.run.layers), last.run.ranks, -1).sum(2)
    mean_L1 = np.maximum(pairs_LR.mean(1, keepdims=True), 1e-9)
    relative = pairs_LR / mean_L1
    reach = max(0.25, float(np.abs(relative - 1).max()))
    mesh = right.pcolormesh(
        np.arange(last.run.ranks + 1),
        np.arange(len(last.run.layers) + 1),
        relative,
        cmap="RdBu_r",
        vmin=1 - reach,
        vmax=1 + reach,
    )
    right.grid(False)
    step = max(1, last.run.ranks // 16)
    right.set_xticks(np.arange(last.run.ranks)[::step] + 0.5, np.arange(last.run.ranks)[::step])
    right.set_xlabel("expert-parallel rank")
    draw.name_layers(right, last.run.layers)
    right.set_title(f"routed pairs in iterations {span(last)}, EP {last.run.ranks}")
    fig.colorbar(mesh, ax=right, label="pairs / mean of the layer", pad=0.02)
    read = (
        "The slowest rank sets the pace: at 1.10 the busiest rank has a tenth more than the mean, "
        "and the others wait. These are sums over an interval and over data-parallel replicas, so "
        "single steps are less equal than this; --grove-metrics-interval 1 shows them."
    )
    if alone.any():
        read += " One rank alone has all the work, and is not drawn."
    return Drawn("ranks", title, read, fig)


def bias(shown: Shown) -> Drawn:
    """RMS and range of the expert bias."""
    title = "Expert bias"
    if "bias_rms" not in shown.measures:
        return Drawn("bias", title, "The router has no expert bias.", None)
    fig = draw.figure(4.0)
    left, right = fig.subplots(1, 2)
    for name, colour, label in (
        ("bias_max", draw.ORANGE, "largest"),
        ("bias_rms", draw.BLUE, "root mean square"),
        ("bias_min", draw.GREEN, "smallest"),
    ):
        draw.band(left, shown.intervals, shown.measures[name], colour, label)
    left.axhline(0, color=draw.GRAY, linewidth=0.8)
    draw.over_iterations(left, shown.intervals, "bias added to the scores")
    draw.at_least(left, -0.01, 0.01)
    left.set_title("mean over layers, and their range")
    draw.legend(left)
    draw.layers_over_time(
        right, shown.intervals, shown.measures["bias_rms"], "RMS of the bias", 0.01
    )
    right.set_title("RMS, layer by layer")
    read = (
        "The bias moves selection towards experts with few tokens. It should rise, then level off; "
        "a bias that keeps growing in one layer chases an expert that no token wants. Scores are "
        "sigmoids between 0 and 1, so values of some tenths outweigh the router."
    )
    return Drawn("bias", title, read, fig)


def _stacked(axes: Axes, intervals: Sequence[Interval], share_ID: Array) -> None:
    """Shares as an area for every number of groups, the smallest at the bottom."""
    draw.over_iterations(axes, intervals, "share of tokens")
    axes.set_ylim(0, 1)
    axes.grid(False)
    used = [n for n in range(share_ID.shape[1]) if share_ID[:, n].max() > 0]
    if not used:
        return
    share_ID = with_gaps(intervals, share_ID, 0)
    steps = np.concatenate([share_ID[:1], share_ID])
    areas = axes.stackplot(
        edges(intervals),
        [steps[:, n] for n in used],
        colors=draw.shades(len(used)),
        step="pre",
    )
    numbers = [str(n) for n in used]
    axes.legend(
        areas[::-1], numbers[::-1], title="groups", loc="center left", bbox_to_anchor=(1, 0.5)
    )
