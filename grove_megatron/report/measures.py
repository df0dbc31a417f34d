"""Numbers to look at, from the sums of an interval.

A layer that saw no token has NaN in place of every ratio, and means over layers leave it out.

Shape suffixes as in record.py: L layers, E experts, G groups, R expert-parallel ranks.
"""

import math
import warnings
from collections.abc import Iterable

import numpy as np

from .arrays import Array
from .record import Interval

MEANINGS = {
    "load_mean": "routed pairs of an expert in an iteration, mean over experts; a repeated MTP "
    "layer counts at every depth",
    "load_min": "the same of the expert with the fewest",
    "load_max": "the same of the expert with the most",
    "max_vio": "MaxVio of the experts: most over mean, less 1; 0 is balance",
    "dead_experts": "experts without a token in the whole interval",
    "group_max_vio": "MaxVio of the groups' routed pairs",
    "adjugate_max_vio": "MaxVio of the adjugates' tokens",
    "groups_per_token": "distinct groups a token meets: adjugates it needs",
    "pairs_per_token": "routed pairs (token, expert): what experts compute",
    "constant_per_token": "constant experts of a token",
    "copy_per_token": "copy experts of a token",
    "zero_per_token": "zero experts of a token",
    "skipped_share": "share of a token's experts that have no FFN: neither computed nor sent",
    "rows_per_token": "rows sent, the one to the own rank included: one per token and rank it "
    "needs; with Megatron's allgather one per token and rank",
    "node_rows_per_token": "rows sent to nodes by hierarchical dispatch, the own one included, "
    "before the others",
    "dropped_share": "share of routed pairs dropped for capacity",
    "rank_pairs_imbalance": "routed pairs of an expert-parallel rank: most over mean; 1 is balance",
    "rank_rows_imbalance": "rows received by an expert-parallel rank: most over mean",
    "bias_rms": "root mean square of the expert bias",
    "bias_min": "smallest expert bias",
    "bias_max": "largest expert bias",
}
"""What is reported of every layer, and as mean over layers."""

TOTALS = {
    "worst_max_vio": "MaxVio of the layer that is worst",
    "dead_experts_total": "dead experts of all layers",
    "longest_idle": "iterations that the longest idle expert has been without a token",
    "active_parameters": "parameters an average token used, by its measured experts and adjugates",
    "sent_bytes_per_rank": "bytes of hidden states that leave a rank in an iteration, both ways, "
    "expert tensor parallelism, backward and recompute included; mean over ranks",
}
"""What is reported of the whole model."""


def per_layer(interval: Interval) -> dict[str, Array]:
    """Every measure of :data:`MEANINGS` that applies, [L] fp64 each."""
    run = interval.run
    load_LE = interval.experts.astype(float) / interval.iterations
    pairs_L = interval.experts.sum(1).astype(float)
    tokens_L = interval.sharing.sum(1).astype(float)
    sent_L = interval.sent_tokens.astype(float)
    found = {
        "load_mean": load_LE.mean(1),
        "load_min": load_LE.min(1),
        "load_max": load_LE.max(1),
        "max_vio": imbalance(interval.experts) - 1,
        "dead_experts": (interval.experts == 0).sum(1).astype(float),
        "pairs_per_token": ratio(pairs_L, tokens_L),
        "rows_per_token": ratio(interval.rows.sum(1), sent_L),
        "rank_pairs_imbalance": imbalance(_parts(interval.experts, run.ranks)),
        "rank_rows_imbalance": imbalance(interval.rows),
    }
    if run.groups:
        found["group_max_vio"] = imbalance(_parts(interval.experts, run.groups)) - 1
        found["adjugate_max_vio"] = imbalance(interval.groups) - 1
        found["groups_per_token"] = ratio(interval.groups.sum(1), tokens_L)
    if interval.node_rows.any():
        found["node_rows_per_token"] = ratio(interval.node_rows, sent_L)
    kept_L = pairs_L
    if interval.local is not None:
        ends = np.cumsum([*run.local.values()])[:-1]
        kinds = zip(run.local, np.split(interval.local, ends, axis=1), strict=True)
        found |= {f"{kind}_per_token": ratio(of_LC.sum(1), tokens_L) for kind, of_LC in kinds}
        kept_L = pairs_L + interval.local.sum(1)
        found["skipped_share"] = ratio(interval.local.sum(1), kept_L)
    if run.drops:
        found["dropped_share"] = 1 - ratio(kept_L, tokens_L * run.topk)
    if interval.bias is not None:
        bias_LE = interval.bias.astype(float)
        found["bias_rms"] = np.sqrt((bias_LE**2).mean(1))
        found["bias_min"] = bias_LE.min(1)
        found["bias_max"] = bias_LE.max(1)
    unused = tokens_L == 0
    for name in ("load_mean", "load_min", "load_max", "dead_experts"):
        found[name][unused] = math.nan
    return found


def totals(interval: Interval) -> dict[str, float]:
    """Every measure of :data:`TOTALS` but ``longest_idle``, for which see :class:`Idle`."""
    layers = per_layer(interval)
    return {
        "worst_max_vio": _over_layers(np.nanmax, layers["max_vio"]),
        "dead_experts_total": float(np.nansum(layers["dead_experts"])),
        "active_parameters": active_parameters(interval),
        "sent_bytes_per_rank": sent_bytes(interval) / interval.run.world_size / interval.iterations,
    }


def mean(values_L: Array) -> float:
    """Over the layers that saw tokens; NaN if none did."""
    return _over_layers(np.nanmean, values_L)


def numbers(interval: Interval) -> dict[str, float]:
    """All of the above, layers by their mean, and the language model's loss as ``loss``."""
    means = {name: mean(values) for name, values in per_layer(interval).items()}
    return means | totals(interval) | {"loss": interval.losses.get("lm loss", math.nan)}


def active_parameters(interval: Interval) -> float:
    """Parameters of the dense part, and of the experts and adjugates a token used on average.

    Every layer has the same share of the routed experts' and of the adjugates' parameters.
    """
    run, layers = interval.run, per_layer(interval)
    dense, routed, adjugate = run.parameters
    active = dense + mean(layers["pairs_per_token"]) / run.experts * routed
    if run.groups:
        active += mean(layers["groups_per_token"]) / run.groups * adjugate
    return active


def sent_bytes(interval: Interval) -> float:
    """Bytes of hidden states that left a rank, of all ranks and layers.

    A row leaves with its token and comes back with the sum, and the gradients go the same ways;
    recompute sends forth and back once more.
    """
    reruns_L = np.nan_to_num(ratio(interval.rerun_tokens, interval.sent_tokens.astype(float)))
    crossings_L = 4 + 2 * reruns_L
    return float((interval.left_rows * crossings_L).sum()) * interval.run.row_bytes


class Idle:
    """For how many iterations every expert has been without a token, at least.

    An interval with a token in it counts as none: when in it the token came is not known.
    """

    def __init__(self) -> None:
        self.iterations: Array = np.zeros((0, 0), np.int64)

    def see(self, interval: Interval) -> Array:
        """Take in the next interval; returns [L, E] int64. A layer without tokens stands still."""
        shape = interval.experts.shape
        if self.iterations.shape != shape:
            self.iterations = np.zeros(shape, np.int64)
        ran = interval.sharing.sum(1, keepdims=True) > 0
        idle = np.where(ran, self.iterations + interval.iterations, self.iterations)
        self.iterations = np.where(interval.experts > 0, 0, idle)
        return self.iterations


def longest_idle(intervals: Iterable[Interval]) -> float:
    """Iterations that the longest idle expert has been without a token at their end."""
    idle = Idle()
    found = 0.0
    for interval in intervals:
        found = float(idle.see(interval).max(initial=0))
    return found


def imbalance(counts_LN: Array) -> Array:
    """Most over mean, [L]; NaN where all are 0."""
    return ratio(counts_LN.max(1), counts_LN.mean(1))


def ratio(numerator: Array, denominator: Array) -> Array:
    """Entry by entry in fp64, NaN where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    safe = np.where(denominator == 0, 1, denominator)
    return np.where(denominator == 0, math.nan, numerator / safe)


def _parts(counts_LE: Array, parts: int) -> Array:
    """Sums of equal, contiguous parts: [L, E] -> [L, parts]."""
    return counts_LE.reshape(counts_LE.shape[0], parts, -1).sum(2)


def _over_layers(how: object, values_L: Array) -> float:
    with warnings.catch_warnings():
        # Where no layer saw a token.
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(how(values_L))  # type: ignore[operator]
