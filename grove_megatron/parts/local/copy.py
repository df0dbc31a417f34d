"""Copy experts of MoE++: a token goes around the FFN."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..part import Part
from . import rules


@dataclass
class Settings:
    """Copy experts."""

    grove_copy_experts: int = 0
    """Experts whose output is their input, beside --num-experts with an FFN."""


class Copy:
    """E(x) = x."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, x_TH: Tensor, weights_TC: Tensor) -> Tensor | None:
        """The token, times the sum of its weights for them."""
        return x_TH * weights_TC.sum(1, keepdim=True).to(x_TH.dtype)


class Reference(Copy):
    """Token by token and expert by expert."""

    def __call__(self, x_TH: Tensor, weights_TC: Tensor) -> Tensor | None:
        rows = [
            torch.stack([w * x for w in weights]).sum(0)
            for x, weights in zip(x_TH, weights_TC, strict=True)
        ]
        return torch.stack(rows)


PARTS = (
    Part(
        slot="local",
        name="copy",
        help="experts whose output is their input",
        source="arXiv 2410.07348; SkyworkAI/MoE-plus-plus@7f43967 MOELayer",
        settings=Settings,
        switch="grove_copy_experts",
        formula="y_TH += w[t, i] x_TH",
        when="To let easy tokens go around an FFN and keep their place in the residual stream. "
        "It has no weights but its column of the router, and sends nothing.",
        is_on=lambda s: bool(s.grove_copy_experts),
        columns=lambda s: s.grove_copy_experts,
        build=lambda config: Copy(config.grove_copy_experts),
        reference=lambda config: Reference(config.grove_copy_experts),
        rules=lambda s: rules(s, "grove_copy_experts"),
        tried="--grove-copy-experts 2",
        order=1,
    ),
)
