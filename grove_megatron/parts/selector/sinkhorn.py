"""Sinkhorn routing (S-BASE): the best of a soft assignment in which experts weigh the same."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...checks.problem import Problem
from ...checks.rules import Check
from ...functional.sinkhorn import log_sinkhorn
from ..exclusions import selector_problems
from ..part import Part, Seen, widened


@dataclass
class Settings:
    """Sinkhorn routing."""

    grove_sinkhorn_iterations: int = 20
    """Iterations of --grove-router-selector sinkhorn over the tokens of a microbatch. More balance
    better, and nothing waits for them to converge."""


class Sinkhorn:
    """In training the best of pi, in evaluation of the logits.

    Weights are Megatron's (moe_utils.py sinkhorn routing @ 0.19.2): sigmoid(z) of one expert, the
    softmax over all, not renormalised, of several.

    Args:
        topk: K.
        iterations: see the settings.
    """

    reads_logits = True

    def __init__(self, topk: int, iterations: int) -> None:
        self.topk, self.iterations = topk, iterations

    def choose(self, z_TE: Tensor, seen: Seen) -> Tensor:
        """[T, K], best first."""
        scores_TE = widened(z_TE)
        if seen.training:
            scores_TE, padding_T = seen.together(scores_TE)
            counted_T = None if padding_T is None else ~padding_T
            scores_TE = seen.own(log_sinkhorn(scores_TE, counted_T, self.iterations))
        return scores_TE.topk(self.topk, dim=1).indices

    def weigh(self, z_TE: Tensor, chosen: Tensor) -> Tensor:
        """[T, K], in the dtype of the logits."""
        wide_TE = widened(z_TE)
        scores_TE = wide_TE.sigmoid() if self.topk == 1 else wide_TE.softmax(dim=-1)
        return scores_TE.gather(1, chosen).to(z_TE.dtype)


class Reference(Sinkhorn):
    """By exponentials, as Megatron does it, which small logits allow."""

    def choose(self, z_TE: Tensor, seen: Seen) -> Tensor:
        tokens, experts = z_TE.shape
        pi = z_TE.exp()
        there = [t for t in range(tokens) if seen.padding_T is None or not seen.padding_T[t]]
        for _ in range(self.iterations if seen.training else 0):
            pi = torch.stack([row / row.sum() for row in pi])
            columns = [pi[:, e] * len(there) / experts / pi[there, e].sum() for e in range(experts)]
            pi = torch.stack(columns, dim=1)
        best = [sorted(range(experts), key=lambda e: -float(row[e]))[: self.topk] for row in pi]
        return torch.tensor(best)

    def weigh(self, z_TE: Tensor, chosen: Tensor) -> Tensor:
        rows = []
        for z, experts in zip(z_TE, chosen.tolist(), strict=True):
            if self.topk == 1:
                scores = [1 / (1 + (-z[e]).exp()) for e in experts]
            else:
                scores = [z[e].exp() / z.exp().sum() for e in experts]
            rows.append(torch.stack(scores))
        return torch.stack(rows)


def rules(settings: Any) -> list[Problem]:
    check = Check(settings)
    return [
        *check.at_least("grove_sinkhorn_iterations", 1, "20 balance most logits"),
        *selector_problems(settings),
    ]


PARTS = (
    Part(
        slot="selector",
        name="sinkhorn",
        help="the best of a soft assignment with equal sums of experts, in training",
        source="arXiv 2202.01169, section 3.1 (S-BASE); megatron-core 0.19.2 moe_utils.py sinkhorn",
        settings=Settings,
        formula="training:   e_TK = the K largest of pi[t, i]\n"
        "            pi = diag(r_T) exp(z_TE) diag(c_E), rows sum to 1, columns to T / E\n"
        "evaluation: e_TK = the K largest of z[t, i]\n"
        "weights:    sigmoid(z[t, e]) for K = 1, else softmax_E(z)[t, e], not renormalised",
        when="For near balance in training without a loss and for any number of experts a token, "
        "at a fixed number of iterations and no waiting for the device. The balance is "
        "soft: the best of pi are not exactly as many for all experts. Training sees later "
        "tokens.",
        is_on=lambda s: s.grove_router_selector == "sinkhorn",
        build=lambda c: Sinkhorn(c.moe_router_topk, c.grove_sinkhorn_iterations),
        reference=lambda c: Reference(c.moe_router_topk, c.grove_sinkhorn_iterations),
        rules=rules,
        sees="training",
        free=("grove_sinkhorn_iterations",),
        tried="--grove-router-selector sinkhorn --moe-aux-loss-coeff 0",
    ),
)
