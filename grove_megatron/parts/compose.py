"""From logits to a routing: the order in which parts act."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .part import (
    Counts,
    Drop,
    Keep,
    Logits,
    Routed,
    Scoring,
    Seen,
    Select,
    Selector,
    Transform,
    Weigh,
)

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
        selector: what selects in place of scores and limits, or None.
        topk: K.
        ordered: does something ask which choice is better, in evaluation too?
        drop, counts: what comes after :func:`route`.
    """

    scoring: Scoring | None
    topk: int
    ordered: bool = False
    selector: Selector | None = None
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
    weights: Tensor | None = None
    if steps.selector is not None:
        chosen = steps.selector.choose(z_TE.detach(), seen)
        weights = steps.selector.weigh(z_TE, chosen)
        if chosen.dtype == torch.bool:
            assert weights is not None, "what selects any number weighs them"
            return Routed(index_TK=None, selected_TE=chosen, probs_TE=weights, map_TE=chosen)
    else:
        chosen = _best_scores(steps, z_TE, bias_E, seen, topk)
    if weights is None:
        assert steps.scoring is not None, "a scoring, where a selector has no weights of its own"
        weights = steps.scoring.weigh(z_TE, chosen)
    return _of_index(steps, z_TE, chosen, weights, seen)


def _best_scores(
    steps: Steps, z_TE: Tensor, bias_E: Tensor | None, seen: Seen, topk: TopK
) -> Tensor:
    assert steps.scoring is not None, "a scoring, where there is no selector"
    scores_TE = steps.scoring.select(z_TE, bias_E)
    if steps.select is not None:
        scores_TE = steps.select(scores_TE)
    # The order is part of the bits, which recomputation must find again.
    in_order = steps.ordered or seen.training or torch.is_grad_enabled()
    return topk(scores_TE, steps.topk, in_order)


def _of_index(
    steps: Steps, z_TE: Tensor, index_TK: Tensor, weights_TK: Tensor, seen: Seen
) -> Routed:
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
