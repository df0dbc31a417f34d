"""BASE layers: one expert a token, and as many tokens an expert as any other."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...checks.problem import Problem
from ...checks.rules import Check
from ...functional.assignment import balanced_assignment
from ..exclusions import selector_problems
from ..part import Part, Seen


@dataclass
class Settings:
    """Balanced assignment."""

    grove_base_precision: float = 0.02
    """How near --grove-router-selector base comes to the best assignment of a microbatch's tokens:
    on average a token's logit is below it by at most this part of their range, and mostly by far
    less. 0.02 is that of the authors' code. Smaller ones take more rounds, each of which waits for
    the device."""


class Balanced:
    """In training the assignment that fits the logits best, in evaluation each token's best.

    Weighed by sigmoid(z). With the residual connection around the layer, x + sigmoid(z) f(x) is
    what the authors write as sigmoid(z) (x + f(x)) + (1 - sigmoid(z)) x.

    Args:
        precision: see the settings.
    """

    reads_logits = True

    def __init__(self, precision: float) -> None:
        self.precision = precision

    def choose(self, z_TE: Tensor, seen: Seen) -> Tensor:
        """[T, 1]."""
        if not seen.training:
            return z_TE.argmax(dim=1, keepdim=True)
        z_TE, padding_T = seen.together(z_TE)
        if padding_T is None:
            return seen.own(self.assigned(z_TE)).unsqueeze(1)
        there = (~padding_T).nonzero().squeeze(1)
        assigned_T = z_TE.argmax(dim=1).index_copy(0, there, self.assigned(z_TE[there]))
        return seen.own(assigned_T).unsqueeze(1)

    def assigned(self, z_TE: Tensor) -> Tensor:
        """[T], all of them balanced."""
        return balanced_assignment(z_TE, self.precision).expert_T

    def weigh(self, z_TE: Tensor, chosen: Tensor) -> Tensor:
        """[T, 1]."""
        return z_TE.gather(1, chosen).sigmoid()


class Reference(Balanced):
    """By scipy's exact assignment."""

    def assigned(self, z_TE: Tensor) -> Tensor:
        # Of the tests; what trains needs none of it.
        import numpy as np
        from scipy.optimize import linear_sum_assignment

        tokens, experts = z_TE.shape
        each, left = divmod(tokens, experts)
        places = [e for e in range(experts) for _ in range(each)]
        worth = z_TE[:, places].numpy()
        if left:
            nobody = np.full((experts - left, len(places) + experts), -1e9)
            nobody[:, len(places) :] = 0
            worth = np.concatenate([np.concatenate([worth, z_TE.numpy()], axis=1), nobody])
            places += range(experts)
        taken = linear_sum_assignment(worth, maximize=True)[1][:tokens]
        return torch.tensor([places[p] for p in taken])


def rules(settings: Any) -> list[Problem]:
    check = Check(settings)
    one = "{grove_router_selector} gives a token one expert, not {moe_router_topk}; use 1"
    return [
        *check.finite("grove_base_precision", "0.02 is the authors'", above=True),
        *check.those(
            {
                one: settings.moe_router_topk != 1,
                "{grove_base_precision} is above 1, with which nothing is compared; 0.02 is the "
                "authors'": 1 < settings.grove_base_precision < float("inf"),
            }
        ),
        *selector_problems(settings, capacity=False),
    ]


PARTS = (
    Part(
        slot="selector",
        name="base",
        help="one expert a token, as many tokens an expert as any other, in training",
        source="arXiv 2103.16716, Eq. 2-4; facebookresearch/fairseq@3d262bb base_layer.py",
        settings=Settings,
        formula="training:   e_T = argmax sum_t z[t, e_t]\n"
        "            where every expert has T // E tokens or one more\n"
        "evaluation: e_t = argmax_i z[t, i]\n"
        "weights:    w_t = sigmoid(z[t, e_t])",
        when="For experts that are exactly balanced in training without a loss, where one expert "
        "a token is enough. The assignment takes rounds of bids, for each of which the host "
        "waits; training and evaluation choose differently, and training sees later tokens.",
        is_on=lambda s: s.grove_router_selector == "base",
        build=lambda c: Balanced(c.grove_base_precision),
        reference=lambda c: Reference(c.grove_base_precision),
        rules=rules,
        sees="training",
        free=("grove_base_precision",),
        tried="--grove-router-selector base --moe-router-topk 1 --grove-base-precision 1e-6 "
        "--moe-aux-loss-coeff 0",
    ),
)
