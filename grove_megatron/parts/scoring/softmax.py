"""Megatron's score functions, as the released families use them.

Selected and weighed by one function of the logits: softmax before the choice (Qwen2-MoE, OLMoE,
Grok-1, Switch, DeepSeek-V2) or after it (Mixtral, DBRX, Qwen3-MoE), sigmoid (DeepSeek-V3) or the
root of a softplus. Megatron's own function does the same with every softmax in fp32; here it is as
wide as the logits.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...checks.problem import Problem
from ...checks.rules import Check
from .. import registry
from ..part import Part, widened
from .grove import has_grove_scoring, is_read, scaled

# As moe_utils.py:844 @ 0.19.2.
_NO_ZERO = 1e-20


class FamilyScoring:
    """By the score function of the flags.

    Args:
        score_function: ``softmax``, ``sigmoid`` or ``sqrtsoftplus``.
        pre_softmax: the softmax is over all experts, and the selected are not renormalised.
        topk: K; a single sigmoid is not renormalised.
        factor: of the weights.
    """

    def __init__(
        self, score_function: str, pre_softmax: bool, topk: int, factor: float = 1.0
    ) -> None:
        self.score_function, self.pre_softmax = score_function, pre_softmax
        self.topk, self.factor = topk, factor

    def scores(self, z_TE: Tensor) -> Tensor:
        z_TE = widened(z_TE)
        if self.score_function == "softmax":
            return torch.softmax(z_TE, dim=-1)
        return torch.sigmoid(z_TE) if self.score_function == "sigmoid" else F.softplus(z_TE).sqrt()

    def select(self, z_TE: Tensor, bias_E: Tensor | None) -> Tensor:
        """The scores with the bias (DeepSeek-V3), or the logits where the softmax comes after."""
        z_TE = z_TE.detach()
        if self.score_function == "softmax" and not self.pre_softmax:
            return z_TE
        scores_TE = self.scores(z_TE)
        return scores_TE if bias_E is None else scores_TE + bias_E.to(scores_TE.dtype)

    def weigh(self, z_TE: Tensor, index_TK: Tensor) -> Tensor:
        """In the dtype of the logits, to which they are rounded once, at the end."""
        if self.score_function == "softmax" and not self.pre_softmax:
            weights_TK = torch.softmax(widened(z_TE.gather(1, index_TK)), dim=-1)
        else:
            weights_TK = self.scores(z_TE).gather(1, index_TK)
            if self.score_function != "softmax" and self.topk > 1:
                weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + _NO_ZERO)
        return scaled(weights_TK, self.factor).to(z_TE.dtype)

    def distribution(self, z_TE: Tensor) -> Tensor:
        """The scores of all experts, normalised."""
        scores_TE = self.scores(z_TE)
        if self.score_function == "softmax":
            return scores_TE
        return scores_TE / (scores_TE.sum(dim=-1, keepdim=True) + _NO_ZERO)


class Reference(FamilyScoring):
    """Token by token."""

    def scores(self, z_TE: Tensor) -> Tensor:
        if self.score_function == "softmax":
            return torch.stack([z.exp() / z.exp().sum() for z in z_TE])
        if self.score_function == "sigmoid":
            return 1 / (1 + torch.exp(-z_TE))
        return torch.log(1 + torch.exp(z_TE)) ** 0.5

    def weigh(self, z_TE: Tensor, index_TK: Tensor) -> Tensor:
        rows = []
        for scores, index in zip(self.scores(z_TE), index_TK, strict=True):
            chosen = [scores[i] for i in index.tolist()]
            raw = self.pre_softmax if self.score_function == "softmax" else self.topk == 1
            total = 1.0 if raw else sum(chosen)
            rows.append(torch.stack([self.factor * score / total for score in chosen]))
        return torch.stack(rows)


def _of(kind: type[FamilyScoring], config: Any) -> FamilyScoring:
    return kind(
        config.moe_router_score_function,
        config.moe_router_pre_softmax,
        config.moe_router_topk,
        config.moe_router_topk_scaling_factor or 1.0,
    )


OWN_SELECTION = ("sinkhorn", "quantile_balancing")
"""Values of --moe-router-load-balancing-type that select experts in a way of Megatron's own."""


def rules(settings: Any) -> list[Problem]:
    """Where Megatron selects and weighs in one function of its own, no other part has a say."""
    balancing = settings.moe_router_load_balancing_type
    kinds = balancing if isinstance(balancing, list) else [balancing]
    own = [{"moe_router_load_balancing_type": kind} for kind in kinds if kind in OWN_SELECTION]
    fused = [{"moe_router_fusion": True}] if settings.moe_router_fusion else []
    on = registry.active(settings)
    losses = [part for part in on if part.slot == "loss"]
    problems = [_beside(settings, p, by, "takes no auxiliary loss") for p in losses for by in own]
    asked = [p for p in on if p.slot in ("select", "counts") and p.name != registry.default(p.slot)]
    idle = asked + [part for part in on if part.slot == "keep"]
    if settings.moe_expert_capacity_factor is not None or settings.grove_expert_capacity:
        what = "drops what it selects before losses see it"
        problems += [_beside(settings, part, by, what) for part in losses for by in fused]
    if settings.moe_z_loss_coeff:
        what = "takes the z-loss of what it changes"
        changed = [part for part in on if part.slot == "logits" and part.name != "bias"]
        problems += [_beside(settings, p, by, what) for p in changed for by in own + fused]
    return problems + [
        _beside(settings, p, by, "selects experts itself") for p in idle for by in own + fused
    ]


def _beside(settings: Any, part: Part, other: dict[str, Any], what: str) -> Problem:
    (beside,) = other
    sentence = f"{{{registry.setting(part)}}} is set beside {{{beside}}}, which {what}; remove one "
    return Check(settings, **other).problem(f"{sentence}of them")


PARTS = (
    Part(
        slot="scoring",
        name="softmax",
        help="Megatron's score functions, as its flags say",
        source="megatron-core 0.19.2 moe_utils.py:710; arXiv 2101.03961, 2401.04088, 2412.19437",
        formula="softmax:      the K largest of z_TE; w_TK = factor softmax_K(z[t, e_TK])\n"
        "pre-softmax:  the K largest of p_TE; w_TK = factor p[t, e_TK]\n"
        "sigmoid:      s = sigmoid(z); the K largest of s_TE + b_E\n"
        "              w_TK = factor s[t, e_TK] / sum_K s[t, e_TK], for K = 1 factor s\n"
        "sqrtsoftplus: the same with s = sqrt(softplus(z))\n"
        "losses:       p_TE = softmax_E(z), or s_TE / sum_E s",
        when="To train like the family whose flags are given: Mixtral, Qwen3 and DBRX weigh "
        "after the choice, Switch, OLMoE and DeepSeek-V2 before it, DeepSeek-V3 by "
        "sigmoids. An expert bias needs sigmoid or sqrtsoftplus.",
        is_on=lambda s: is_read(s) and not has_grove_scoring(s),
        build=lambda config: _of(FamilyScoring, config),
        reference=lambda config: _of(Reference, config),
        rules=rules,
        tried="--grove-router-scoring softmax",
    ),
)
