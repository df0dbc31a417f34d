"""The rules by which the expert bias moves after every global batch."""

from typing import Any

import torch
from torch import Tensor

from ...functional.balance import rms_step
from ..part import Part


def has_grove_scoring(settings: Any) -> bool:
    """With Megatron's scoring its rule is kept too."""
    return bool(settings.grove_num_groups) and settings.grove_router_scoring == "grove"


def by_rms(settings: Any) -> bool:
    """Does the bias move by the paper's rule?"""
    return (
        settings.moe_router_enable_expert_bias
        and has_grove_scoring(settings)
        and settings.grove_bias_update_rule == "rms"
    )


def rms_reference(config: Any) -> Any:
    """Layer by layer and expert by expert."""

    def step(counts_LE: Tensor, rate: float) -> Tensor:
        steps = []
        for counts in counts_LE.tolist():
            errors = [count / (sum(counts) or 1) - 1 / len(counts) for count in counts]
            rms = (sum(error**2 for error in errors) / len(errors)) ** 0.5
            steps.append([-rate * e / rms if rms > 1e-12 and sum(counts) else 0.0 for e in errors])
        return torch.tensor(steps, dtype=torch.float64)

    return step


PARTS = (
    Part(
        slot="update",
        name="rms",
        help="by the load error, scaled to a root mean square of --moe-router-bias-update-rate",
        source="arXiv 2508.07785, Eq. 7-8",
        is_on=by_rms,
        build=lambda config: rms_step,
        reference=rms_reference,
        needs_groups=True,
        tried="--moe-router-enable-expert-bias",
    ),
    Part(
        slot="update",
        name="sign",
        help="by one rate up or down, Megatron's rule, which softmax scoring always has",
        source="arXiv 2408.15664; megatron-core 0.19.2 moe_utils.py:1136",
        is_on=lambda s: s.moe_router_enable_expert_bias and not by_rms(s),
        # Megatron moves it.
        build=lambda config: None,
        reference=lambda config: None,
        tried="--moe-router-enable-expert-bias --grove-bias-update-rule sign",
    ),
)
