"""Noisy top-k gating: learned noise on the logits while the router learns."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..part import Logits, Part, Seen


@dataclass
class Settings:
    """Noisy top-k gating."""

    grove_noisy_topk: bool = False
    """Add normal noise to the router's logits in training, of a standard deviation that is learned
    from the token. Evaluation has none."""


class LearnedNoise(torch.nn.Module):
    """z -> z + e * softplus(W_noise x), e of mean 0 and deviation 1; W_noise [E, H] starts at 0."""

    def __init__(self, num_experts: int, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(num_experts, hidden_size, dtype=dtype))

    def forward(self, logits: Logits, seen: Seen) -> Logits:
        """In training; the same logits otherwise."""
        if not seen.training:
            return logits
        assert seen.x_TH is not None, "noise is learned from the tokens"
        dtype = logits.z_TE.dtype
        deviation_TE = F.softplus(seen.x_TH.to(dtype) @ self.weight.to(dtype).T)
        noise_TE = seen.draws.normal(deviation_TE.detach())
        return replace(
            logits,
            z_TE=logits.z_TE + noise_TE * deviation_TE,
            clean_TE=logits.z_TE,
            deviation_TE=deviation_TE,
        )


def reference(config: Any, weight: Tensor) -> Any:
    """Token by token and expert by expert."""

    def step(logits: Logits, seen: Seen) -> Logits:
        if not seen.training:
            return logits
        assert seen.x_TH is not None, "noise is learned from the tokens"
        noise_TE = seen.draws.normal(logits.z_TE.detach())
        rows = [[torch.log1p(torch.exp(w @ x)) for w in weight] for x in seen.x_TH]
        deviation_TE = torch.stack([torch.stack(row) for row in rows])
        noisy_TE = logits.z_TE + noise_TE * deviation_TE
        return replace(logits, z_TE=noisy_TE, clean_TE=logits.z_TE, deviation_TE=deviation_TE)

    return step


PARTS = (
    Part(
        slot="logits",
        name="noise",
        help="learned noise on the logits in training",
        source="arXiv 1701.06538, Eq. 3-5",
        settings=Settings,
        switch="grove_noisy_topk",
        formula="training:   z_TE -> z_TE + n_TE * softplus(x_TH W_EH^T), n of N(0, 1)\n"
        "evaluation: z_TE -> z_TE",
        when="To have tokens try experts that are not their best, and for the loss of the "
        "expected load, which is taken over this noise. It doubles the router's weights, "
        "and what a token is trained with is not what it meets in evaluation.",
        is_on=lambda s: s.grove_noisy_topk,
        build=lambda config: LearnedNoise(
            config.num_moe_experts, config.hidden_size, config.params_dtype
        ),
        reference=reference,
        draws=True,
        tried="--grove-noisy-topk",
        weights={"weight": ("R", "H")},
        order=2,
    ),
)
