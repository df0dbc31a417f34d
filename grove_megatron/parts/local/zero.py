"""Zero experts of MoE++: a token that selects one skips an FFN."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...checks.rules import Check
from ..part import Part
from . import rules


@dataclass
class Settings:
    """Zero experts."""

    grove_zero_experts: int = 0
    """Experts whose output is 0, beside --num-experts with an FFN: a token that selects one
    computes and sends less."""

    grove_zero_expert_weight: Literal["own", "others"] = "own"
    """What becomes of the weight of a selected zero expert: it is its own, and the token gets less
    of the others; or the others of the token share it, in proportion, as in the released models of
    MoE++: their weights sum to 1."""


class Shared:
    """Weights of the selected without zero experts, which are the last columns, sum to 1."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, weights_TK: Tensor, index_TK: Tensor, columns: int) -> Tensor:
        """0 for a token that selected nothing else."""
        weights_TK = weights_TK.masked_fill(index_TK >= columns - self.count, 0)
        total_T1 = weights_TK.sum(1, keepdim=True)
        return weights_TK / torch.where(total_T1 > 0, total_T1, 1)


class SharedReference(Shared):
    """Token by token."""

    def __call__(self, weights_TK: Tensor, index_TK: Tensor, columns: int) -> Tensor:
        rows = []
        for weights, index in zip(weights_TK, index_TK.tolist(), strict=True):
            left = [
                w if i < columns - self.count else 0 * w
                for w, i in zip(weights, index, strict=True)
            ]
            total = sum(left)
            rows.append(torch.stack([w / total if float(total) else w for w in left]))
        return torch.stack(rows)


class Zero:
    """E(x) = 0."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, x_TH: Tensor, weights_TC: Tensor) -> Tensor | None:
        """Nothing to add."""
        return None


PARTS = (
    Part(
        slot="local",
        name="zero",
        help="experts whose output is 0",
        source="arXiv 2410.07348; SkyworkAI/MoE-plus-plus@7f43967 MOELayer",
        settings=Settings,
        switch="grove_zero_experts",
        formula="y_TH += 0",
        when="To let a token take fewer FFNs than others: whoever selects it computes and sends "
        "less. Rows a rank gets vary more, and with too little balance tokens may skip more "
        "than is good.",
        is_on=lambda s: bool(s.grove_zero_experts),
        columns=lambda s: s.grove_zero_experts,
        build=lambda config: Zero(config.grove_zero_experts),
        reference=lambda config: Zero(config.grove_zero_experts),
        rules=lambda s: rules(s, "grove_zero_experts"),
        tried="--grove-zero-experts 2",
        order=2,
    ),
    Part(
        slot="weigh",
        name="shared",
        help="others share the weight of a zero expert",
        source="arXiv 2410.07348; SkyworkAI/MoE-plus-plus@7f43967 moe_plus_plus_layer.py gating",
        settings=Settings,
        switch="grove_zero_expert_weight",
        formula="w[t, k] -> w[t, k] / sum_K w[t, k] over the selected that are no zero experts\n"
        "w[t, k] -> 0 of a zero expert",
        when="To load what the released code of MoE++ trained. A token that selects a zero "
        "expert then gets the whole weight for its other expert, so the zero expert changes "
        "what is computed and no longer how much of it is added.",
        is_on=lambda s: s.grove_zero_expert_weight == "others",
        build=lambda config: Shared(config.grove_zero_experts),
        reference=lambda config: SharedReference(config.grove_zero_experts),
        rules=lambda s: [
            *Check(s).those(
                {
                    "{grove_zero_expert_weight} needs {grove_zero_experts}; give some, or remove "
                    "it": not s.grove_zero_experts,
                    "{moe_router_pre_softmax} does nothing beside {grove_zero_expert_weight}, with "
                    "which weights sum to 1; remove one of them": s.moe_router_pre_softmax,
                    "{moe_router_topk_scaling_factor} does nothing beside "
                    "{grove_zero_expert_weight}, with which weights sum to 1; remove one of them": (
                        s.moe_router_topk_scaling_factor not in (None, 1)
                    ),
                }
            )
        ],
        tried="--grove-zero-experts 2 --grove-zero-expert-weight others",
    ),
)
