"""Gating logit normalisation of Skywork-MoE: a token's logits get one spread."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ...checks.problem import Problem
from ...checks.rules import Check
from .. import registry
from ..part import Logits, Part, Seen, experts_of, widened


@dataclass
class Settings:
    """Gating logit normalisation."""

    grove_logit_norm: Literal["none", "population", "sample"] = "none"
    """Normalise the router's logits of every token to mean 0 and one standard deviation, that of
    a population (divided by the experts) or of a sample (by the experts - 1, as in the code of
    MoE++). Sharper choices, and a choice that no scale of the logits changes."""

    grove_logit_norm_scale: float = 1.0
    """Standard deviation of the normalised logits."""

    grove_logit_norm_eps: float = 1e-6
    """Logits of a smaller standard deviation are only centred: a router that starts at 0 has
    none."""


class LogitNorm:
    """z -> scale * (z - mean) / std over the experts.

    Args:
        correction: 0 divides the variance by E, 1 by E - 1.
        scale, eps: see the settings.
    """

    def __init__(self, correction: int, scale: float, eps: float) -> None:
        self.correction, self.scale, self.eps = correction, scale, eps

    def __call__(self, logits: Logits, seen: Seen) -> Logits:
        """In the dtype of z, computed in fp32 or wider."""
        z_TE = widened(logits.z_TE)
        centred_TE = z_TE - z_TE.mean(-1, keepdim=True)
        divisor = z_TE.shape[-1] - self.correction
        variance_T1 = centred_TE.square().sum(-1, keepdim=True) / divisor
        # The root of what is replaced would have an infinite gradient, and 0 * inf is nan.
        flat_T1 = variance_T1 <= max(self.eps**2, torch.finfo(z_TE.dtype).tiny)
        deviation_T1 = torch.where(flat_T1, 1.0, variance_T1).sqrt()
        normed_TE = self.scale * centred_TE / deviation_T1
        return replace(logits, z_TE=normed_TE.to(logits.z_TE.dtype), raw_TE=logits.z_TE)


def _correction(config: Any) -> int:
    return int(config.grove_logit_norm == "sample")


def reference(config: Any) -> Any:
    """Token by token."""

    def step(logits: Logits, seen: Seen) -> Logits:
        rows = []
        for z in logits.z_TE:
            mean = sum(z) / len(z)
            variance = sum((entry - mean) ** 2 for entry in z) / (len(z) - _correction(config))
            flat = float(variance) < config.grove_logit_norm_eps**2
            rows.append(config.grove_logit_norm_scale * (z - mean) / (1 if flat else variance**0.5))
        return replace(logits, z_TE=torch.stack(rows), raw_TE=logits.z_TE)

    return step


def rules(settings: Any) -> list[Problem]:
    experts = experts_of(settings)
    check = Check(settings, num_experts=experts)
    sentence = "{grove_logit_norm} has no spread to normalise with {num_experts}; use 2 or more"
    return [
        *check.finite("grove_logit_norm_scale", "1 is the paper's", above=True),
        *check.finite("grove_logit_norm_eps", "1e-6 is small", above=True),
        *check.those(
            {sentence: experts is not None and experts + registry.local_experts(settings) < 2}
        ),
    ]


PARTS = (
    Part(
        slot="logits",
        name="norm",
        help="logits of every token normalised",
        source="arXiv 2406.06563, Eq. 6; std of a sample: SkyworkAI/MoE-plus-plus@7f43967 gating",
        settings=Settings,
        switch="grove_logit_norm",
        formula="z[t, i] -> scale (z[t, i] - mean_i z[t, i]) / std_i z[t, i]\n"
        "std divides by E (population) or E - 1 (sample); it counts as 1 where it is below eps",
        when="Where weights of the selected come out nearly equal, so that experts are averaged "
        "more than chosen: the scale says how sharp the choice is. The length of the logits "
        "no longer says how sure a router is of a token.",
        is_on=lambda s: s.grove_logit_norm != "none",
        build=lambda config: LogitNorm(
            _correction(config), config.grove_logit_norm_scale, config.grove_logit_norm_eps
        ),
        reference=reference,
        rules=rules,
        tried="--grove-logit-norm sample --grove-logit-norm-scale 1.5",
        free=("grove_logit_norm_eps",),
        order=1,
    ),
)
