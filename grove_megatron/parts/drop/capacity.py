"""Token dropping: no expert takes more than its capacity."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core.transformer.moe.moe_utils import apply_router_token_dropping
from torch import Tensor

from ...checks.problem import Problem
from ...checks.ranks import capacity_over_ranks
from ...checks.rules import Check
from ...functional.places import places
from .. import registry
from ..losses.heterogeneous import Settings as HeterogeneousSettings
from ..losses.heterogeneous import tau_rules
from ..part import Part, Routed, Seen


@dataclass
class Settings:
    """What a capacity is of."""

    grove_expert_capacity: int | None = None
    """Tokens that an expert takes, in place of --moe-expert-capacity-factor."""

    grove_capacity_scope: Literal["rank", "sequence"] = "rank"
    """Of what an expert takes a capacity: the tokens of a microbatch that a rank has, as Megatron
    does it; or those of every sequence that it has, as the Switch Transformer, GShard and ST-MoE do
    it. What is dropped of a sequence then no longer depends on those beside it."""

    grove_capacity_first_choices: bool = False
    """With --moe-token-drop-policy position: the best experts of all tokens come before the second
    ones of any, as in GShard and ST-MoE."""


class Capacity:
    """C = ceil(K T / E factor) tokens an expert, of all tokens or of a sequence's.

    Of --moe-expert-capacity-factor; never padded up to it: the dispatcher sends what there is. With
    local experts C_i = ceil(K T / sum_j e_j factor e_i): e is tau of an expert with an FFN, 1 of a
    local one. All together take factor times the pairs there are, as with one capacity for all.
    Padding takes no place.
    """

    def __init__(self, config: Any) -> None:
        self.policy: str = config.moe_token_drop_policy
        self.topk: int = config.moe_router_topk
        self.factor: float = config.moe_expert_capacity_factor
        self.tokens: int | None = config.grove_expert_capacity
        self.by_sequence = config.grove_capacity_scope == "sequence"
        self.first_choices = config.grove_capacity_first_choices
        self.is_megatrons = _kind(config) == "capacity"
        self.local = registry.local_experts(config)
        self.tau: float = config.grove_local_tau

    def limits(self, tokens_B: Tensor, columns: int) -> Tensor:
        """[B, E] int64: of so many tokens, those that every expert takes."""
        if self.tokens is not None:
            return tokens_B.new_full((len(tokens_B), columns), self.tokens)
        routed, tau = columns - self.local, self.tau if self.local else 1.0
        # Rounded as Megatron's (moe_utils.py:241 @ 0.19.2).
        unit_B = tokens_B.double() * self.topk / (tau * routed + self.local) * self.factor
        weights_E = torch.ones(columns, dtype=torch.float64, device=tokens_B.device)
        weights_E[:routed] = tau
        return (unit_B.unsqueeze(1) * weights_E).ceil().long()

    def __call__(self, routed: Routed, seen: Seen) -> Routed:
        if self.is_megatrons and seen.padding_T is None:
            # Bit for bit: by position it takes what its topk gives of equal ones, not the first.
            _, kept_TE = apply_router_token_dropping(
                routed.probs_TE,
                routed.map_TE,
                router_topk=self.topk,
                capacity_factor=self.factor,
                drop_policy=self.policy,
                pad_to_capacity=False,
            )
            return routed.only(kept_TE)
        map_TE = seen.without_padding(routed.map_TE)
        if not self.by_sequence:
            return routed.only(self._kept(map_TE, routed, seen.padding_T, 1))
        # A sequence may lie on several ranks.
        all_TE, padding_T = seen.together(map_TE)
        by_probs = self.policy == "probs"
        whole = Routed(
            index_TK=seen.gather(routed.choices_TK) if self.first_choices else None,
            selected_TE=all_TE,
            # By place they are not looked at.
            probs_TE=seen.gather(routed.probs_TE.detach()) if by_probs else all_TE,
            map_TE=all_TE,
        )
        return routed.only(seen.own(self._kept(all_TE, whole, padding_T, seen.batch_size)))

    def _kept(
        self, map_TE: Tensor, routed: Routed, padding_T: Tensor | None, sequences: int
    ) -> Tensor:
        """[T, E] bool."""
        tokens, experts = map_TE.shape
        map_SBE = map_TE.reshape(tokens // sequences, sequences, experts)
        if padding_T is None:
            tokens_B = torch.full((sequences,), len(map_SBE), device=map_TE.device)
        else:
            tokens_B = (~padding_T).reshape(-1, sequences).sum(0)
        if self.first_choices:
            place_SBE = _by_choice(map_SBE, routed.choices_TK)
        elif self.policy == "position":
            place_SBE = map_SBE.cumsum(0)
        else:
            shown_SBE = routed.probs_TE.detach().reshape(map_SBE.shape)
            shown_SBE = shown_SBE.masked_fill(~map_SBE, -math.inf)
            place_SBE = places(shown_SBE) + 1
        return (map_SBE & (place_SBE <= self.limits(tokens_B, experts))).reshape(tokens, experts)


def _by_choice(map_SBE: Tensor, index_TK: Tensor) -> Tensor:
    """Where a pair stands among those of its expert, better choices before all others."""
    place_SBE = torch.zeros_like(map_SBE, dtype=torch.int64)
    before_BE = place_SBE[0]
    for index_T in index_TK.unbind(1):
        index_SB1 = index_T.reshape(*map_SBE.shape[:2], 1)
        chosen_SBE = torch.zeros_like(map_SBE).scatter(2, index_SB1, True) & map_SBE
        place_SBE = place_SBE + chosen_SBE * (before_BE + chosen_SBE.cumsum(0))
        before_BE = before_BE + chosen_SBE.sum(0)
    return place_SBE


class Reference(Capacity):
    """Sequence by sequence and expert by expert."""

    def __call__(self, routed: Routed, seen: Seen) -> Routed:
        kept_TE = torch.zeros_like(routed.map_TE)
        tokens, experts = routed.map_TE.shape
        sequences = seen.batch_size if self.by_sequence else 1
        for b in range(sequences):
            own = [t for t in range(tokens) if t % sequences == b]
            if seen.padding_T is not None:
                own = [t for t in own if not seen.padding_T[t]]
            for i in range(experts):
                limit = self._limit(len(own), i, experts)
                met = [t for t in own if routed.map_TE[t, i]]
                if self.policy == "probs":
                    met.sort(key=lambda t, i=i: -float(routed.probs_TE[t, i]))  # type: ignore[misc]
                elif self.first_choices:
                    rank = {t: routed.choices_TK[t].tolist().index(i) for t in met}
                    met.sort(key=rank.__getitem__)
                kept_TE[met[:limit], i] = True
        return routed.only(kept_TE)

    def _limit(self, tokens: int, expert: int, experts: int) -> int:
        if self.tokens is not None:
            return self.tokens
        routed, share = experts - self.local, 1.0
        whole = float(experts)
        if self.local:
            whole = self.tau * routed + self.local
            share = self.tau if expert < routed else 1.0
        return math.ceil(tokens * self.topk / whole * self.factor * share)


def rules(settings: Any) -> list[Problem]:
    check = Check(settings)
    broken = {
        "{grove_expert_capacity} and {moe_expert_capacity_factor} both say how many tokens an "
        "expert takes; give one of them": (
            settings.grove_expert_capacity is not None
            and settings.moe_expert_capacity_factor is not None
        ),
        "{grove_capacity_first_choices} is of an order, and {moe_token_drop_policy} has another; "
        "use --moe-token-drop-policy position": (
            settings.grove_capacity_first_choices and settings.moe_token_drop_policy != "position"
        ),
        "{grove_expert_capacity} says nothing of experts without an FFN, which take more; use "
        "--moe-expert-capacity-factor": (
            settings.grove_expert_capacity is not None and registry.local_experts(settings) > 0
        ),
        "{sft} packs several conversations into a sequence, which {grove_capacity_scope} would let "
        "take places from one another; use rank": (
            settings.grove_capacity_scope == "sequence" and getattr(settings, "sft", False)
        ),
        "{moe_router_fusion} drops as Megatron does, and {grove_capacity_scope}, "
        "{grove_capacity_first_choices} and {grove_expert_capacity} say otherwise; remove it": (
            settings.moe_router_fusion and _kind(settings) not in ("capacity", "heterogeneous")
        ),
    }
    return [
        *check.one_of("grove_capacity_scope", ("rank", "sequence"), "use rank"),
        *check.at_least("grove_expert_capacity", 1, "leave it out"),
        *capacity_over_ranks(settings),
        *check.those(broken),
    ]


def _kind(settings: Any) -> str | None:
    """Name of the part that drops, or None."""
    if settings.grove_expert_capacity is not None:
        return "tokens"
    if settings.moe_expert_capacity_factor is None:
        return None
    if registry.local_experts(settings):
        return "heterogeneous"
    if settings.grove_capacity_first_choices:
        return "choices"
    return "sequence" if settings.grove_capacity_scope == "sequence" else "capacity"


def _part(
    name: str,
    help: str,
    source: str,
    tried: str,
    switch: str | None = None,
    *,
    formula: str,
    when: str,
) -> Part:
    return Part(
        slot="drop",
        name=name,
        help=help,
        source=source,
        settings=Settings,
        switch=switch,
        is_on=lambda s: _kind(s) == name,
        build=Capacity,
        reference=Reference,
        rules=rules,
        free=("grove_expert_capacity", "grove_capacity_scope", "grove_capacity_first_choices"),
        tried=tried,
        crowds=True,
        formula=formula,
        when=when,
    )


PARTS = (
    _part(
        "capacity",
        "what an expert cannot take is dropped",
        "megatron-core 0.19.2 moe_utils.py:957; arXiv 2101.03961, Eq. 3",
        "--moe-expert-capacity-factor 1.0",
        switch="moe_expert_capacity_factor",
        formula="C = ceil(K T factor / E), T the tokens of a rank\n"
        "an expert keeps its C pairs of the largest weights (--moe-token-drop-policy probs), or\n"
        "C that Megatron's topk gives of equal numbers (position); beside padding, the first",
        when="To bound what an expert computes and a rank receives. Tokens lose experts, and "
        "weights of the rest are not raised; Megatron's own rule, without its padding.",
    ),
    _part(
        "sequence",
        "the same of every sequence for itself",
        "arXiv 2101.03961, section 2.2; transformers 4.46.3 SwitchTransformersTop1Router",
        "--moe-expert-capacity-factor 1.0 --grove-capacity-scope sequence",
        formula="C = ceil(K S factor / E), of each sequence of S tokens\n"
        "an expert keeps of each its C pairs of the largest weights, or the first C",
        when="To have a sequence give up the same whatever stands beside it, as the Switch "
        "Transformer, GShard and ST-MoE do. More is dropped than of a whole rank at the "
        "same factor, where sequences could lend each other places; sequences that lie on "
        "several ranks are gathered.",
    ),
    _part(
        "choices",
        "the same, where first choices come before second ones",
        "arXiv 2006.16668, Algorithm 1; lucidrains/st-moe-pytorch@d94e65d TopNGating",
        "--moe-expert-capacity-factor 1.0 --grove-capacity-first-choices "
        "--moe-token-drop-policy position",
        formula="C = ceil(K T factor / E)\n"
        "an expert keeps its first C pairs: the best choices of all tokens, then the second ones",
        when="With several experts a token, where losing the second expert is better than losing "
        "the best of a later token, as GShard and ST-MoE have it. Later tokens still lose "
        "more than early ones.",
    ),
    _part(
        "tokens",
        "the same of a capacity that is given in tokens",
        "arXiv 2101.03961, Eq. 3; transformers 4.46.3 SwitchTransformersTop1Router",
        "--grove-expert-capacity 2 --grove-capacity-scope sequence --moe-token-drop-policy "
        "position --grove-capacity-first-choices",
        switch="grove_expert_capacity",
        formula="C = --grove-expert-capacity\n"
        "an expert keeps C pairs of a rank or of each sequence, in the order that is asked for",
        when="To load a system whose capacity is a number, such as the Switch Transformer of "
        "transformers. The number does not follow the length of sequences, so shorter ones "
        "drop less.",
    ),
    Part(
        slot="drop",
        name="heterogeneous",
        help="the same, where experts with an FFN take fewer tokens than those without",
        source="arXiv 2410.07348",
        formula="C_i = ceil(K T factor eta_i / sum_j eta_j), eta = tau with an FFN, 1 without\n"
        "an expert keeps its C_i pairs of the largest weights, or the first C_i",
        when="Beside experts without an FFN, which cost little and may take more. At a small tau "
        "many pairs with an FFN are dropped, unless a loss with the same tau brings the "
        "choice there.",
        crowds=True,
        settings=Settings,
        reads=(HeterogeneousSettings,),
        is_on=lambda s: _kind(s) == "heterogeneous",
        build=Capacity,
        reference=Reference,
        rules=lambda s: [*tau_rules(s, "moe_expert_capacity_factor"), *rules(s)],
        tried="--moe-expert-capacity-factor 1.0 --grove-zero-experts 2 --grove-copy-experts 1",
        free=("grove_local_tau",),
    ),
)
