"""Skywork-MoE's adaptive auxiliary loss: every layer's weight follows how unbalanced it is."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...checks.problem import Problem
from ...checks.rules import Check
from .. import registry
from ..exclusions import balance_losses
from ..part import Part, Routed, Seen


@dataclass
class Settings:
    """The adaptive weight of the balance loss."""

    grove_adaptive_aux_loss: bool = False
    """Let the weight of the balance loss of every layer move after every global batch, from
    --moe-aux-loss-coeff: up where its experts drop more tokens, or would if they had a capacity,
    down where they drop fewer."""

    grove_adaptive_decay: float = 0.99
    """How much of a weight stays in one step."""

    grove_adaptive_slope: float = 0.2
    """The weight that is moved to is so many times the share of pairs that are dropped."""

    grove_adaptive_max: float = 0.01
    """It is at most this."""

    grove_adaptive_capacity: float = 1.0
    """Where experts have no capacity: the factor of one, of which what it would drop is counted."""


class AdaptiveCoefficient(torch.nn.Module):
    """alpha' = beta alpha + (1 - beta) min(xi d, alpha_max), d the share of dropped pairs.

    State: ``bits``, alpha as the int64 with the bits of its fp64, because Float16Module rounds
    buffers of floating point; ``pairs``, the dropped and all of this rank since the last step.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.decay, self.slope = config.grove_adaptive_decay, config.grove_adaptive_slope
        self.most, self.factor = config.grove_adaptive_max, config.grove_adaptive_capacity
        (weight,) = [weight for _, weight in balance_losses(config)]
        begin = torch.tensor([float(weight)], dtype=torch.float64)
        self.bits: Tensor
        self.pairs: Tensor
        self.register_buffer("bits", begin.view(torch.int64))
        self.register_buffer("pairs", torch.zeros(2, dtype=torch.int64), persistent=False)
        self._read: tuple[Tensor, int, float] | None = None

    @property
    def value(self) -> float:
        """alpha; waits for the device once after each step."""
        bits, version = self.bits, self.bits._version
        if self._read is None or self._read[0] is not bits or self._read[1] != version:
            self._read = (bits, version, float(bits.view(torch.float64)))
        return self._read[2]

    @torch.no_grad()
    def see(self, routed: Routed, sent: Routed, seen: Seen) -> None:
        """Count a microbatch of training.

        Args:
            routed, sent: before and after drops; the same where there are none.
        """
        wanted_E = seen.without_padding(routed.map_TE).sum(0)
        pairs = wanted_E.sum()
        if sent is routed:
            capacity = torch.ceil(pairs / len(wanted_E) * self.factor)
            dropped = (wanted_E - capacity).clamp(min=0).sum().long()
        else:
            dropped = pairs - seen.without_padding(sent.map_TE).sum()
        self.pairs += torch.stack([dropped, pairs])

    @torch.no_grad()
    def step(self, pairs: Tensor) -> None:
        """Move by the pairs of a global batch, [2] int64: dropped, and all; none: stay."""
        dropped, every = pairs.double().unbind()
        alpha = self.bits.view(torch.float64)
        aim = (self.slope * dropped / every.clamp(min=1)).clamp(max=self.most)
        moved = self.decay * alpha + (1 - self.decay) * aim
        self.bits.copy_(torch.where(every > 0, moved, alpha).view(torch.int64))
        self.pairs.zero_()


class Reference:
    """In Python's numbers."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def step(self, alpha: float, dropped: int, pairs: int) -> float:
        """alpha after a global batch."""
        c = self.config
        aim = min(c.grove_adaptive_slope * dropped / pairs, c.grove_adaptive_max)
        moved: float = c.grove_adaptive_decay * alpha + (1 - c.grove_adaptive_decay) * aim
        return moved


def rules(settings: Any) -> list[Problem]:
    check, losses = Check(settings), balance_losses(settings)
    drops = registry.one(settings, "drop") is not None
    name = "grove_adaptive_aux_loss"
    broken = {
        f"{{{name}}} moves the weight of one balance loss, and {{moe_router_load_balancing_type}} "
        f"are {len(losses)}; choose one": len(losses) != 1,
        f"{{{name}}} begins at {{moe_aux_loss_coeff}}, which is none; give a weight above 0": (
            len(losses) == 1 and not losses[0][1]
        ),
        f"{{{name}}} moves a loss that {{moe_router_fusion}} computes elsewhere; remove one of "
        "them": settings.moe_router_fusion,
        "{grove_adaptive_capacity} is of experts without a capacity, and there is one, of which "
        "what is dropped is counted; remove it": drops and settings.grove_adaptive_capacity != 1,
        f"{{{name}}} without a capacity counts as if all experts had the same, and those without "
        "an FFN take more; give --moe-expert-capacity-factor": (
            not drops and registry.local_experts(settings) > 0
        ),
        "{grove_adaptive_decay} is not between 0 and 1; 0.99 is the paper's": not (
            0 <= settings.grove_adaptive_decay <= 1
        ),
    }
    return [
        *check.finite("grove_adaptive_slope", "0.2 is the paper's", above=True),
        *check.finite("grove_adaptive_max", "0.01 is the paper's", above=True),
        *check.finite("grove_adaptive_capacity", "1 is as many as there are", above=True),
        *check.those(broken),
    ]


PARTS = (
    Part(
        slot="coefficient",
        name="adaptive",
        help="every layer's balance loss weighs as much as its experts are unbalanced",
        source="arXiv 2406.06563, section 4.2",
        settings=Settings,
        switch="grove_adaptive_aux_loss",
        formula="alpha' = beta alpha + (1 - beta) min(xi d, alpha_max), of every layer\n"
        "d = dropped pairs / routed pairs of the global batch; without a capacity those beyond\n"
        "ceil(factor pairs / E) an expert, microbatch by microbatch of a rank",
        when="When layers need balance at different times of a training: a balanced layer is left "
        "alone, and one that drops tokens is pulled. One number a layer is read by the host after "
        "each step.",
        is_on=lambda s: s.grove_adaptive_aux_loss,
        build=AdaptiveCoefficient,
        reference=lambda config, **_: Reference(config),
        rules=rules,
        buffers={"bits": ("1",)},
        free=(
            *("grove_adaptive_decay", "grove_adaptive_slope", "grove_adaptive_max"),
            "grove_adaptive_capacity",
        ),
        tried="--grove-adaptive-aux-loss --moe-router-load-balancing-type aux_loss "
        "--moe-aux-loss-coeff 0.1",
    ),
)
