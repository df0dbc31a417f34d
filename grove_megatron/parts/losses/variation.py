"""The two losses of noisy top-k gating: experts are to matter, and to be chosen, alike."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...checks.problem import Problem
from ...checks.rules import Check
from ..part import Balance, Part, experts_of, widened


@dataclass
class Settings:
    """Losses of noisy top-k gating."""

    grove_importance_loss_coeff: float = 0.0
    """Weight of the squared coefficient of variation of the experts' summed combine weights; 0.1
    in the paper of noisy top-k gating. 0: none."""

    grove_load_loss_coeff: float = 0.0
    """Weight of the same of the experts' expected tokens, over the noise of --grove-noisy-topk.
    0: none."""


_LEAST_DEVIATION = 1e-6


def variation(sums_E: Tensor) -> Tensor:
    """CV^2: the variance of the experts' sums by the square of their mean; 0 without tokens."""
    mean = sums_E.mean()
    return (sums_E - mean).square().mean() / mean.square().clamp(min=torch.finfo(sums_E.dtype).tiny)


class ImportanceLoss:
    """coeff * CV^2 of the combine weights, summed over the batch (Eq. 6-7)."""

    name = "importance_loss"

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient

    def sums(self, balance: Balance) -> Tensor:
        """[E], of this rank's tokens."""
        return balance.seen.without_padding(widened(balance.routed.probs_TE)).sum(0)

    def __call__(self, balance: Balance) -> Tensor:
        everywhere_E = balance.seen.everywhere(self.sums(balance))
        return balance.whole(self.coefficient * variation(everywhere_E))


class LoadLoss(ImportanceLoss):
    """coeff * CV^2 of the expected tokens (Eq. 8-11)."""

    name = "load_loss"

    def sums(self, balance: Balance) -> Tensor:
        logits, routed = balance.logits, balance.routed
        assert logits.clean_TE is not None, "there is noise in training"
        assert logits.deviation_TE is not None, "there is noise in training"
        topk = routed.choices_TK.shape[1]
        z_TE, clean_TE = widened(logits.z_TE), widened(logits.clean_TE)
        # Its derivative has the square below a line.
        deviation_TE = widened(logits.deviation_TE).clamp(min=_LEAST_DEVIATION)
        best = z_TE.topk(topk + 1, dim=1).values
        # The k-th greatest of the others: one further down for those among the k.
        threshold_TE = torch.where(routed.selected_TE, best[:, topk:], best[:, topk - 1 : topk])
        chance_TE = torch.special.ndtr((clean_TE - threshold_TE) / deviation_TE)
        return balance.seen.without_padding(chance_TE).sum(0)


class Reference:
    """Expert by expert and token by token."""

    def __init__(self, coefficient: float, load: bool) -> None:
        self.coefficient, self.load = coefficient, load

    def __call__(self, balance: Balance) -> Tensor:
        padding_T = balance.seen.padding_T
        tokens = [
            t for t in range(len(balance.counted_TE)) if padding_T is None or not bool(padding_T[t])
        ]
        share = self._chance if self.load else self._weight
        sums = torch.stack(
            [
                torch.stack([share(balance, t, i) for t in tokens]).sum()
                for i in range(balance.counted_TE.shape[1])
            ]
        )
        return self.coefficient * (sums.std(correction=0) / sums.mean()) ** 2

    def _weight(self, balance: Balance, t: int, i: int) -> Tensor:
        return balance.routed.probs_TE[t, i]

    def _chance(self, balance: Balance, t: int, i: int) -> Tensor:
        logits, topk = balance.logits, balance.routed.choices_TK.shape[1]
        assert logits.clean_TE is not None, "there is noise in training"
        assert logits.deviation_TE is not None, "there is noise in training"
        others = [z for j, z in enumerate(logits.z_TE[t]) if j != i]
        threshold = sorted(others, key=float)[-topk]
        deviation = logits.deviation_TE[t, i].clamp(min=_LEAST_DEVIATION)
        distance = (logits.clean_TE[t, i] - threshold) / deviation
        return 0.5 * (1 + torch.erf(distance / 2**0.5))


def load_rules(settings: Any) -> list[Problem]:
    experts, coeff = experts_of(settings), "grove_load_loss_coeff"
    check = Check(settings, num_experts=experts)
    broken = {
        "{grove_load_loss_coeff} is an expectation over noise, {grove_noisy_topk}; give it, or "
        "remove this": not settings.grove_noisy_topk,
        "{grove_load_loss_coeff} has nothing to choose with {moe_router_topk} of {num_experts}; "
        "use fewer, or remove it": experts and settings.moe_router_topk >= experts,
    }
    broken |= {
        "{grove_load_loss_coeff} is of a choice by the logits alone and so excludes "
        f"{{{name}}}; remove one of them": getattr(settings, name)
        for name in ("moe_router_enable_expert_bias", "moe_router_group_topk")
    }
    return [*check.finite(coeff, "0 is none"), *check.those(broken)]


PARTS = (
    Part(
        slot="loss",
        name="importance",
        help="experts get alike sums of weights",
        source="arXiv 1701.06538, Eq. 6-7",
        settings=Settings,
        switch="grove_importance_loss_coeff",
        formula="loss = coeff CV^2(sum_t w[t, i]), CV^2(a_E) = mean_E (a - mean a)^2 / (mean a)^2",
        when="To keep experts alike in weight where choices are made by noisy logits. Alike sums "
        "of weights can be few heavy tokens or many light ones, which is why the paper adds "
        "the loss of the load.",
        is_on=lambda s: bool(s.grove_importance_loss_coeff),
        build=lambda c: ImportanceLoss(c.grove_importance_loss_coeff),
        reference=lambda c: Reference(c.grove_importance_loss_coeff, load=False),
        rules=lambda s: [*Check(s).finite("grove_importance_loss_coeff", "0 is none")],
        tried="--grove-importance-loss-coeff 0.1",
        free=("grove_importance_loss_coeff",),
    ),
    Part(
        slot="loss",
        name="load",
        help="experts get alike numbers of tokens, over the noise",
        source="arXiv 1701.06538, Eq. 8-11",
        settings=Settings,
        switch="grove_load_loss_coeff",
        formula="loss = coeff CV^2(sum_t Phi((z[t, i] - h[t, i]) / d[t, i]))\n"
        "z, d = logits without noise, and the deviation of the noise, at least 1e-6\n"
        "h[t, i] = the K-th largest of the noisy logits of the others\n"
        "CV^2(a_E) = mean_E (a - mean a)^2 / (mean a)^2",
        when="With noisy top-k gating, to balance numbers of tokens by a loss that has a "
        "gradient. It is of a choice by logits alone, so no bias and no limits may stand "
        "beside it.",
        is_on=lambda s: bool(s.grove_load_loss_coeff),
        build=lambda c: LoadLoss(c.grove_load_loss_coeff),
        reference=lambda c: Reference(c.grove_load_loss_coeff, load=True),
        rules=load_rules,
        draws=True,
        tried="--grove-load-loss-coeff 0.1 --grove-noisy-topk",
        free=("grove_load_loss_coeff",),
    ),
)
