"""The random second expert of GShard and ST-MoE: a light one is often not worth its way."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...checks.problem import Problem
from ...checks.rules import Check
from ..part import Part, Seen, widened


@dataclass
class Settings:
    """The random second expert."""

    grove_second_expert_threshold: float | None = None
    """In training a token goes to its best expert, and to each other selected one with probability
    min(1, weight / this), of weights that sum to 1: 0.5 as in GShard, 0.2 as in ST-MoE. The weights
    stay as they are. Evaluation keeps all."""


class RandomKeep:
    """Draws for every selected expert but the best.

    Args:
        threshold: above 0; at this weight and above an expert is always kept.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def __call__(self, weights_TK: Tensor, seen: Seen) -> Tensor | None:
        """True where the token goes; None in evaluation. One draw a (token, expert)."""
        if not seen.training:
            return None
        # In 16 bits a draw would often be 0.
        weights_TK = widened(weights_TK)
        shares_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        kept_TK = seen.draws.uniform(shares_TK[:, 1:]) < shares_TK[:, 1:] / self.threshold
        return torch.cat([torch.ones_like(kept_TK[:, :1]), kept_TK], dim=1)


class Reference(RandomKeep):
    """Token by token."""

    def __call__(self, weights_TK: Tensor, seen: Seen) -> Tensor | None:
        if not seen.training:
            return None
        drawn = seen.draws.uniform(weights_TK[:, 1:]).tolist()
        rows = [
            [True, *(u < w / sum(row) / self.threshold for u, w in zip(us, row[1:], strict=True))]
            for us, row in zip(drawn, weights_TK.tolist(), strict=True)
        ]
        return torch.tensor(rows)


def rules(settings: Any) -> list[Problem]:
    check, name = Check(settings), "grove_second_expert_threshold"
    sentence = f"{{{name}}} needs a second expert, {{moe_router_topk}}; use 2 or more, or remove it"
    return [
        *check.finite(name, "0.5 is GShard's", above=True),
        *check.those({sentence: settings.moe_router_topk < 2}),
    ]


PARTS = (
    Part(
        slot="keep",
        name="random",
        help="a light expert that is not the best is left out at random",
        source="arXiv 2006.16668, Algorithm 1; lucidrains/st-moe-pytorch@d94e65d TopNGating",
        settings=Settings,
        switch="grove_second_expert_threshold",
        formula="q_TK = w_TK / sum_K w_TK\n"
        "training:   e[t, 0] is kept, e[t, k] where u[t, k] < q[t, k] / threshold\n"
        "            u uniform in [0, 1)\n"
        "evaluation: all are kept",
        when="To send fewer rows in training where the second expert has little weight anyway, "
        "as GShard (0.5) and ST-MoE (0.2) do. The weights that are left are not raised, and "
        "evaluation computes more than training did.",
        is_on=lambda s: s.grove_second_expert_threshold is not None,
        build=lambda config: RandomKeep(config.grove_second_expert_threshold),
        reference=lambda config: Reference(config.grove_second_expert_threshold),
        rules=rules,
        draws=True,
        tried="--grove-second-expert-threshold 0.5",
        free=("grove_second_expert_threshold",),
    ),
)
