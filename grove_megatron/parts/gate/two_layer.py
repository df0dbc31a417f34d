"""The gate of two layers of MoE++'s released models."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...model.architecture import GATE_UNITS as GATE_UNITS
from ..part import Part


@dataclass
class Settings:
    """How logits are made."""

    grove_router_gate: Literal["linear", "two_layer", "attention"] = "linear"
    """What makes a token's logits: one matrix; or two with a tanh between them and 8 hidden units
    an expert, as in the released models of MoE++; or attention of the experts to each other, as in
    Yuan 2.0-M32."""


class TwoLayerGate(torch.nn.Module):
    """z = W2 tanh(W1 x), W1 [8E, H] and W2 [E, 8E]."""

    def __init__(self, columns: int, hidden_size: int, config: Any) -> None:
        super().__init__()
        kind = {"dtype": config.params_dtype}
        self.first = torch.nn.Parameter(torch.empty(GATE_UNITS * columns, hidden_size, **kind))
        self.second = torch.nn.Parameter(torch.empty(columns, GATE_UNITS * columns, **kind))
        if config.perform_initialization:
            config.init_method(self.first)
            config.init_method(self.second)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Logits [..., E] of tokens [..., H], computed in ``dtype``."""
        hidden = torch.tanh(F.linear(x.to(dtype), self.first.to(dtype)))
        return F.linear(hidden, self.second.to(dtype))


def reference(config: Any, first: Tensor, second: Tensor) -> Any:
    """Token by token."""

    def step(x: Tensor, dtype: torch.dtype) -> Tensor:
        rows = [
            torch.stack([(out * ((first * token).sum(1)).tanh()).sum() for out in second])
            for token in x.reshape(-1, x.shape[-1])
        ]
        return torch.stack(rows).reshape(*x.shape[:-1], len(second))

    return step


PARTS = (
    Part(
        slot="gate",
        name="two_layer",
        help="logits from two matrices with a tanh between them",
        source="arXiv 2410.07348; SkyworkAI/MoE-plus-plus@7f43967 moe_plus_plus_layer.py Router",
        settings=Settings,
        switch="grove_router_gate",
        formula="z_TE = tanh(x_TH W1_WH^T) W2_EW^T, W = 8 E",
        when="To train or load what the released code of MoE++ makes; its paper has one matrix. "
        "It has more than eight times the weights of one matrix, and as much more to "
        "compute.",
        is_on=lambda s: s.grove_router_gate == "two_layer",
        build=lambda c: TwoLayerGate(c.num_moe_experts, c.hidden_size, c),
        reference=reference,
        tried="--grove-router-gate two_layer",
        weights={"first": ("W", "H"), "second": ("R", "W")},
    ),
)
