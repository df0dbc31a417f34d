"""Grove MoE's decoupled scoring: selected by a biased sigmoid, weighed by a softmax."""

from typing import Any

import torch
from torch import Tensor

from ...checks.problem import Problem
from ...checks.rules import Check
from ..part import Part, widened


def has_grove_scoring(settings: Any) -> bool:
    """Is the paper's scoring there, and read?"""
    grove = bool(settings.grove_num_groups) and settings.grove_router_scoring == "grove"
    return grove and is_read(settings)


def is_read(settings: Any) -> bool:
    """Does the selector leave scores or weights to the scoring?"""
    return settings.grove_router_selector in ("topk", "reinforce")


def scaled(weights_TK: Tensor, factor: float) -> Tensor:
    """Times --moe-router-topk-scaling-factor."""
    return weights_TK if factor == 1 else weights_TK * factor


class DecoupledScoring:
    """Selection carries the bias and no gradient; the weights carry the gradient and no bias.

    Args:
        pre_softmax: weigh by the softmax over all logits, not renormalised.
        factor: of the weights.
    """

    def __init__(self, pre_softmax: bool, factor: float = 1.0) -> None:
        self.pre_softmax, self.factor = pre_softmax, factor

    def select(self, z_TE: Tensor, bias_E: Tensor | None) -> Tensor:
        """sigmoid(z) + b (Eq. 9), fp64.

        In fp64, because the weights do not change when all logits shift, so nothing keeps them
        near 0, and a sigmoid in fp32 is full of ties above 14 and constant above 17.
        """
        scores_TE = torch.sigmoid(z_TE.detach().double())
        return scores_TE if bias_E is None else scores_TE + bias_E.double()

    def weigh(self, z_TE: Tensor, index_TK: Tensor) -> Tensor:
        """The softmax over the selected logits (Eq. 6), as in the released model."""
        z_TE = widened(z_TE)
        if self.pre_softmax:
            weights_TK = torch.softmax(z_TE, dim=-1).gather(1, index_TK)
        else:
            weights_TK = torch.softmax(z_TE.gather(1, index_TK), dim=-1)
        return scaled(weights_TK, self.factor)

    def distribution(self, z_TE: Tensor) -> Tensor:
        """What weighs the experts, not what selects them."""
        return torch.softmax(widened(z_TE), dim=-1)


class Reference(DecoupledScoring):
    """Expert by expert."""

    def select(self, z_TE: Tensor, bias_E: Tensor | None) -> Tensor:
        bias = [0.0] * z_TE.shape[1] if bias_E is None else bias_E.tolist()
        scores = [1 / (1 + torch.exp(-z_TE[:, i].detach())) + b for i, b in enumerate(bias)]
        return torch.stack(scores, dim=1)

    def weigh(self, z_TE: Tensor, index_TK: Tensor) -> Tensor:
        rows = []
        for z, index in zip(z_TE, index_TK, strict=True):
            chosen = [z[i].exp() for i in index.tolist()]
            total = z.exp().sum() if self.pre_softmax else sum(chosen)
            rows.append(torch.stack([self.factor * w / total for w in chosen]))
        return torch.stack(rows)

    def distribution(self, z_TE: Tensor) -> Tensor:
        return torch.stack([z.exp() / z.exp().sum() for z in z_TE])


def rules(settings: Any) -> list[Problem]:
    check = Check(settings)
    broken = {
        "{moe_router_score_function} is not used by {grove_router_scoring}, which selects on "
        "sigmoid; remove it, or use --grove-router-scoring softmax": (
            settings.moe_router_score_function not in ("softmax", "sigmoid")
        ),
        "{moe_router_topk} with {grove_router_scoring} leaves the router without a gradient: the "
        "softmax over one selected logit is constant; use 2 or more, or --grove-router-scoring "
        "softmax": settings.moe_router_topk == 1 and not settings.moe_router_pre_softmax,
        "{moe_router_fusion} computes Megatron's score functions, not {grove_router_scoring}; "
        "remove it, or use --grove-router-scoring softmax": settings.moe_router_fusion,
    }
    balancing = settings.moe_router_load_balancing_type
    kinds = balancing if isinstance(balancing, list) else [balancing]
    return [*check.those(broken)] + [
        Check(settings, moe_router_load_balancing_type=kind).problem(
            "{moe_router_load_balancing_type} selects experts itself and so excludes "
            "{grove_router_scoring}; use aux_loss, none or an expert bias, or "
            "--grove-router-scoring softmax"
        )
        for kind in kinds
        if kind in ("sinkhorn", "quantile_balancing")
    ]


def _of(kind: type[DecoupledScoring], config: Any) -> DecoupledScoring:
    return kind(config.moe_router_pre_softmax, config.moe_router_topk_scaling_factor or 1.0)


PARTS = (
    Part(
        slot="scoring",
        name="grove",
        help="select on sigmoid(logits) + expert bias, weigh by the softmax over the selected",
        source="arXiv 2508.07785, Eq. 6 and 9; inclusionAI/GroveMoE",
        formula="selected: the K largest of sigmoid(z_TE) + b_E, in fp64\n"
        "weights:  w_TK = factor softmax_K(z[t, e_TK])\n"
        "          with --moe-router-pre-softmax: w_TK = factor softmax_E(z)[t, e_TK]\n"
        "losses:   p_TE = softmax_E(z_TE)",
        when="With groups, to train as Grove MoE was: between sigmoids a bias of one size "
        "balances, and the weights are free of it. It needs two experts a token or "
        "--moe-router-pre-softmax, and Megatron's fused router does not have it.",
        is_on=has_grove_scoring,
        build=lambda config: _of(DecoupledScoring, config),
        reference=lambda config: _of(Reference, config),
        rules=rules,
        needs_groups=True,
        tried="--grove-router-scoring grove",
    ),
)
