"""Expert choice: every expert takes the tokens it fits best, and a token gets any number."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...checks.problem import Problem
from ...checks.rules import Check
from ...functional.places import places
from ..exclusions import selector_problems
from ..part import Part, Seen, widened


@dataclass
class Settings:
    """Expert choice."""

    grove_expert_choice_sees_future: bool = False
    """Say that this is known: with --grove-router-selector expert_choice whether a token gets an
    expert depends on the tokens after it, in training and in evaluation. A causal model learns from
    what it will not have when it generates, and its losses are too low."""


class ExpertChoice:
    """Of T tokens each expert takes T K // E, at least 1, with the highest probability.

    Weighed by it, the softmax over a token's experts, not renormalised.

    Args:
        topk: K, experts of a token on average.
    """

    reads_logits = True

    def __init__(self, topk: int) -> None:
        self.topk = topk

    def choose(self, z_TE: Tensor, seen: Seen) -> Tensor:
        """[T, E] bool; of equal tokens the first."""
        scores_TE, padding_T = seen.together(widened(z_TE).log_softmax(dim=-1))
        tokens: Any = scores_TE.shape[0]
        if padding_T is not None:
            scores_TE = scores_TE.masked_fill(padding_T.unsqueeze(1), float("-inf"))
            tokens = (~padding_T).sum()
        taken = tokens * self.topk // z_TE.shape[1]
        taken = taken.clamp(min=1) if isinstance(taken, Tensor) else max(taken, 1)
        return seen.without_padding(seen.own(places(scores_TE) < taken))

    def weigh(self, z_TE: Tensor, chosen: Tensor) -> Tensor:
        """[T, E]."""
        return (widened(z_TE).softmax(dim=-1) * chosen).to(z_TE.dtype)


class Reference(ExpertChoice):
    """Expert by expert."""

    def choose(self, z_TE: Tensor, seen: Seen) -> Tensor:
        experts = z_TE.shape[1]
        shares = torch.stack([z.exp() / z.exp().sum() for z in z_TE])
        there = [t for t in range(len(z_TE)) if seen.padding_T is None or not seen.padding_T[t]]
        chosen_TE = torch.zeros_like(z_TE, dtype=torch.bool)
        for e in range(experts):
            order = sorted(there, key=lambda t: -float(shares[t, e]))
            chosen_TE[order[: max(len(there) * self.topk // experts, 1)], e] = True
        return chosen_TE

    def weigh(self, z_TE: Tensor, chosen: Tensor) -> Tensor:
        return torch.stack([z.exp() / z.exp().sum() for z in z_TE]) * chosen


def rules(settings: Any) -> list[Problem]:
    sentence = (
        "{grove_router_selector} lets the choice of a token depend on those after it, which a "
        "causal model has not when it generates; if that is meant, add "
        "--grove-expert-choice-sees-future"
    )
    known = settings.grove_expert_choice_sees_future
    return [
        *Check(settings).those({sentence: not known}),
        *selector_problems(settings, capacity=False),
    ]


PARTS = (
    Part(
        slot="selector",
        name="expert_choice",
        help="every expert takes as many tokens as any other, those it fits best",
        source="arXiv 2202.09368, section 3.2",
        settings=Settings,
        formula="p_TE = softmax_E(z_TE)\n"
        "expert i takes the max(T K // E, 1) tokens t with the largest p[t, i]\n"
        "w[t, i] = p[t, i] where it took the token, else 0",
        when="For models that see whole sequences, such as encoders: exact balance, and more "
        "experts for some tokens than for others, or none. A causal model learns from "
        "tokens that it will not have, its losses are too low, and it cannot generate.",
        is_on=lambda s: s.grove_router_selector == "expert_choice",
        build=lambda c: ExpertChoice(c.moe_router_topk),
        reference=lambda c: Reference(c.moe_router_topk),
        rules=rules,
        sees="always",
        any_number=True,
        free=("grove_expert_choice_sees_future",),
        tried="--grove-router-selector expert_choice --grove-expert-choice-sees-future "
        "--moe-aux-loss-coeff 0",
    ),
)
