"""A learned bias of the router's logits, z = Wx + b."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..part import Logits, Part, Seen


@dataclass
class Settings:
    """A bias of the logits."""

    grove_logit_bias: bool = False
    """Add a learned bias to the router's logits, as Skywork-MoE has it; it starts at 0. Not the
    expert bias, which balances and has no gradient."""


class LogitBias(torch.nn.Module):
    """b [E], starts at 0."""

    def __init__(self, num_experts: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(num_experts, dtype=dtype))

    def forward(self, logits: Logits, seen: Seen) -> Logits:
        """z + b, in the dtype of z."""
        return replace(logits, z_TE=logits.z_TE + self.bias.to(logits.z_TE.dtype))


def reference(config: Any, bias: Tensor) -> Any:
    """Expert by expert."""

    def step(logits: Logits, seen: Seen) -> Logits:
        columns = [logits.z_TE[:, i] + bias[i] for i in range(config.num_moe_experts)]
        return replace(logits, z_TE=torch.stack(columns, dim=1))

    return step


PARTS = (
    Part(
        slot="logits",
        name="bias",
        help="a learned bias of the logits",
        source="arXiv 2406.06563, Eq. 1",
        settings=Settings,
        switch="grove_logit_bias",
        formula="z_TE -> z_TE + bias_E",
        when="To train or load a router with a bias, such as Skywork-MoE's. An expert can then "
        "be liked by all tokens alike, which balances nothing: that is what the expert bias "
        "is for. It costs E weights.",
        is_on=lambda s: s.grove_logit_bias,
        build=lambda config: LogitBias(config.num_moe_experts, config.params_dtype),
        reference=reference,
        tried="--grove-logit-bias",
        weights={"bias": ("R",)},
        order=0,
    ),
)
