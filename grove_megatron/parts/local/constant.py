"""Constant experts of MoE++: a token is blended with a learned vector."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..part import Part, widened
from . import rules


@dataclass
class Settings:
    """Constant experts."""

    grove_constant_experts: int = 0
    """Experts that blend their input with a learned vector, beside --num-experts with an FFN."""


class Constant(torch.nn.Module):
    """E(x) = a1 x + a2 v with (a1, a2) = softmax(W x); W [2, H] and v [H] of every expert.

    v starts as N(0, 1), as in the authors' code; W as the configuration starts weights.
    """

    def __init__(self, count: int, hidden_size: int, config: Any) -> None:
        super().__init__()
        self.count = count
        kind = {"dtype": config.params_dtype}
        self.weight = torch.nn.Parameter(torch.empty(2 * count, hidden_size, **kind))
        self.vector = torch.nn.Parameter(torch.empty(count, hidden_size, **kind))
        if config.perform_initialization:
            config.init_method(self.weight)
            torch.nn.init.normal_(self.vector)

    def forward(self, x_TH: Tensor, weights_TC: Tensor) -> Tensor | None:
        """Weighted sum over them, in the dtype of x."""
        blend_TC2 = widened(x_TH @ self.weight.T).reshape(len(x_TH), self.count, 2).softmax(-1)
        own_TC, vector_TC = (blend_TC2 * widened(weights_TC).unsqueeze(-1)).unbind(-1)
        kept_TH = x_TH * own_TC.sum(1, keepdim=True).to(x_TH.dtype)
        return torch.addmm(kept_TH, vector_TC.to(x_TH.dtype), self.vector)


def reference(config: Any, weight: Tensor, vector: Tensor) -> Any:
    """Token by token and expert by expert."""

    def step(x_TH: Tensor, weights_TC: Tensor) -> Tensor:
        rows = []
        for x, weights in zip(x_TH, weights_TC, strict=True):
            row = torch.zeros_like(x)
            for c, w in enumerate(weights):
                one, two = ((row_ * x).sum().exp() for row_ in weight[2 * c : 2 * c + 2])
                row = row + w * (one * x + two * vector[c]) / (one + two)
            rows.append(row)
        return torch.stack(rows)

    return step


PARTS = (
    Part(
        slot="local",
        name="constant",
        help="experts that blend their input with a learned vector",
        source="arXiv 2410.07348; SkyworkAI/MoE-plus-plus@7f43967 ConstantExpert",
        settings=Settings,
        switch="grove_constant_experts",
        formula="y_TH += w[t, i] (a1 x_TH + a2 v_H), (a1, a2) = softmax(W_2H x_TH)",
        when="As the cheapest expert that still learns something: a direction to add to a token. "
        "It costs 3 H weights an expert, and two rows of a product on the token's own rank; "
        "nothing is sent.",
        is_on=lambda s: bool(s.grove_constant_experts),
        columns=lambda s: s.grove_constant_experts,
        build=lambda config: Constant(config.grove_constant_experts, config.hidden_size, config),
        reference=reference,
        rules=lambda s: rules(s, "grove_constant_experts"),
        tried="--grove-constant-experts 2",
        weights={"weight": ("B", "H"), "vector": ("C", "H")},
        order=0,
    ),
)
