"""From logits to a routing: the order in which parts act."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .part import Counts, Drop, Keep, Logits, Routed, Scoring, Seen, Select, Transform, Weigh

TopK = Callable[[Tensor, int, bool], Tensor]
"""Scores [T, E], K and whether the best must come first, to int64 [T, K]."""


def best(scores_TE: Tensor, topk: int, in_order: bool) -> Tensor:
    """Indices of the largest scores; like Megatron's, in any order in inference."""
    return torch.topk(scores_TE, topk, dim=1, sorted=in_order).indices


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The parts that select and weigh.

    Args:
        scoring, select, weigh, keep: see the protocols; None: all experts may be selected, have the
            weights of the scoring, and are kept.
        topk: K.
        drop, counts: what comes after :func:`route`.
    """

    scoring: Scoring
    topk: int
    select: Select | None = None
    weigh: Weigh | None = None
    keep: Keep | None = None
    drop: Drop | None = None
    counts: Counts | None = None


def transformed(z_TE: Tensor, transforms: Iterable[Transform], seen: Seen) -> Logits:
    """The logits as everything after sees them."""
    logits = Logits(z_TE=z_TE)
    for transform in transforms:
        logits = transform(logits, seen)
    return logits


def route(
    steps: Steps, z_TE: Tensor, bias_E: Tensor | None, seen: Seen, topk: TopK = best
) -> Routed:
    """Select experts, weigh them, and say which are kept.

    Args:
        steps: the parts.
        z_TE: logits.
        bias_E: the expert bias, or None.
        seen: of this forward pass.
        topk: takes the best of the scores; a replay may take others.
    """
    scores_TE = steps.scoring.select(z_TE, bias_E)
    if steps.select is not None:
        scores_TE = steps.select(scores_TE)
    # The order is part of the bits, which recomputation must find again.
    index_TK = topk(scores_TE, steps.topk, seen.training or torch.is_grad_enabled())
    weights_TK = steps.scoring.weigh(z_TE, index_TK)
    if steps.weigh is not None:
        weights_TK = steps.weigh(weights_TK, index_TK, z_TE.shape[1])
    kept_TK = None if steps.keep is None else steps.keep(weights_TK.detach(), seen)
    probs_TE = weights_TK.new_zeros(z_TE.shape).scatter(1, index_TK, weights_TK)
    nowhere_TE = torch.zeros_like(z_TE, dtype=torch.bool)
    selected_TE = nowhere_TE.scatter(1, index_TK, True)
    routed = Routed(
        index_TK=index_TK, selected_TE=selected_TE, probs_TE=probs_TE, map_TE=selected_TE
    )
    return routed if kept_TK is None else routed.only(nowhere_TE.scatter(1, index_TK, kept_TK))
