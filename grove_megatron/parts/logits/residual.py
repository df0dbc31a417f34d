"""The gating residual of MoE++: a router sees what the one of the MoE layer before it decided."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...checks.problem import Problem
from ...checks.rules import Check
from ...model.architecture import layers_with_experts
from ..exclusions import carrying_problems
from ..part import Logits, Part, Seen


@dataclass
class Settings:
    """The gating residual."""

    grove_gating_residual: bool = False
    """Add a learned map of the logits of the MoE layer before to a router's logits. The first
    layer has none to add, and its map gets zero gradients. With pipeline stages, each exchange
    between two of them also tells a shape, for which the host waits."""


class GatingResidual(torch.nn.Module):
    """z -> z + W z', of the logits z' that the MoE layer before handed on; W [E, E]."""

    def __init__(self, columns: int, config: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(columns, columns, dtype=config.params_dtype))
        if config.perform_initialization:
            config.init_method(self.weight)

    def forward(self, logits: Logits, seen: Seen) -> Logits:
        """In the dtype of z; the product in that of W, as in the authors' code."""
        z_TE, previous_TE = logits.z_TE, seen.previous_TE
        if previous_TE is None:
            # Every parameter has a gradient: reductions wait for all of them.
            previous_TE = torch.zeros_like(z_TE)
        added_TE = F.linear(previous_TE.to(self.weight.dtype), self.weight)
        return replace(logits, z_TE=z_TE + added_TE.to(z_TE.dtype))


def reference(config: Any, weight: Tensor) -> Any:
    """Token by token and expert by expert."""

    def step(logits: Logits, seen: Seen) -> Logits:
        if seen.previous_TE is None:
            return logits
        rows = [torch.stack([(w * z).sum() for w in weight]) for z in seen.previous_TE]
        return replace(logits, z_TE=logits.z_TE + torch.stack(rows))

    return step


def rules(settings: Any) -> list[Problem]:
    check = Check(settings)
    name = "grove_gating_residual"
    layers = sum(layers_with_experts(settings.moe_layer_freq, settings.num_layers))
    too_few = (
        f"{{{name}}} needs two MoE layers, and {{num_layers}} with {{moe_layer_freq}} have "
        f"{layers}; add layers, or remove it"
    )
    return [*check.those({too_few: layers < 2}), *carrying_problems(settings, name)]


PARTS = (
    Part(
        slot="logits",
        name="residual",
        help="a learned map of the logits of the MoE layer before",
        source="arXiv 2410.07348; SkyworkAI/MoE-plus-plus@7f43967 Router",
        settings=Settings,
        switch="grove_gating_residual",
        formula="z_TE -> z_TE + z'_TE W_EE^T\n"
        "z' = those of the MoE layer before after the same step, not normalised; 0 in the first",
        when="To let a router know where the token went one MoE layer before, as MoE++ does, "
        "also beside experts that all have an FFN. It costs E^2 weights a layer, E more "
        "columns beside the hidden states, and with pipeline stages an exchange of shapes "
        "for which the host waits.",
        is_on=lambda s: s.grove_gating_residual,
        build=lambda config: GatingResidual(config.num_moe_experts, config),
        reference=reference,
        rules=rules,
        tried="--grove-gating-residual",
        needs=frozenset({"logits"}),
        weights={"weight": ("R", "R")},
        order=0,
    ),
)
