"""Token dropping: no expert takes more than its capacity."""

import math
from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import apply_router_token_dropping

from .. import registry
from ..losses.heterogeneous import Settings, tau_rules
from ..part import Part, Routed, Seen


class Capacity:
    """Megatron's, of --moe-expert-capacity-factor: ceil(T K factor / E) tokens an expert.

    Never padded up to it: the dispatcher sends what there is.
    """

    def __init__(self, factor: float, policy: str, topk: int) -> None:
        self.factor, self.policy, self.topk = factor, policy, topk

    def __call__(self, routed: Routed, seen: Seen) -> Routed:
        _, kept_TE = apply_router_token_dropping(
            routed.probs_TE,
            routed.map_TE,
            router_topk=self.topk,
            capacity_factor=self.factor,
            drop_policy=self.policy,
            pad_to_capacity=False,
        )
        return routed.only(kept_TE)


class Reference(Capacity):
    """Expert by expert."""

    def __call__(self, routed: Routed, seen: Seen) -> Routed:
        num_tokens, num_experts = routed.map_TE.shape
        capacity = math.ceil(num_tokens * self.topk * self.factor / num_experts)
        kept_TE = torch.zeros_like(routed.map_TE)
        for i in range(num_experts):
            tokens = routed.map_TE[:, i].nonzero().flatten().tolist()
            if self.policy == "probs":
                tokens.sort(key=lambda t: -float(routed.probs_TE[t, i]))
            kept_TE[tokens[:capacity], i] = True
        return routed.only(kept_TE)


class HeterogeneousCapacity:
    """C_i = ceil(K T factor e_i / sum_j e_j): e is tau of an expert with an FFN, 1 of a local one.

    All together take factor times the pairs there are, as with one capacity for all.
    """

    def __init__(self, factor: float, policy: str, topk: int, local: int, tau: float) -> None:
        self.factor, self.policy, self.topk = factor, policy, topk
        self.local, self.tau = local, tau

    def limits(self, tokens: int, columns: int) -> list[int]:
        """Tokens that every expert takes."""
        routed = columns - self.local
        unit = self.factor * self.topk * tokens / (self.tau * routed + self.local)
        return [math.ceil(self.tau * unit)] * routed + [math.ceil(unit)] * self.local

    def __call__(self, routed: Routed, seen: Seen) -> Routed:
        map_TE = routed.map_TE
        limits_E = torch.tensor(self.limits(*map_TE.shape), device=map_TE.device)
        if self.policy == "position":
            place_TE = map_TE.cumsum(0)
        else:
            shown_TE = routed.probs_TE.detach().masked_fill(~map_TE, -math.inf)
            order_TE = shown_TE.argsort(dim=0, descending=True, stable=True)
            place_TE = order_TE.argsort(dim=0) + 1
        return routed.only(map_TE & (place_TE <= limits_E))


class HeterogeneousReference(HeterogeneousCapacity):
    """Expert by expert."""

    def __call__(self, routed: Routed, seen: Seen) -> Routed:
        kept_TE = torch.zeros_like(routed.map_TE)
        for i, limit in enumerate(self.limits(*routed.map_TE.shape)):
            tokens = routed.map_TE[:, i].nonzero().flatten().tolist()
            if self.policy == "probs":
                tokens.sort(key=lambda t: -float(routed.probs_TE[t, i]))
            kept_TE[tokens[:limit], i] = True
        return routed.only(kept_TE)


def _of_several(kind: type[HeterogeneousCapacity], config: Any) -> HeterogeneousCapacity:
    return kind(
        config.moe_expert_capacity_factor,
        config.moe_token_drop_policy,
        config.moe_router_topk,
        registry.local_experts(config),
        config.grove_local_tau,
    )


def _of(kind: type[Capacity], config: Any) -> Capacity:
    return kind(
        config.moe_expert_capacity_factor, config.moe_token_drop_policy, config.moe_router_topk
    )


PARTS = (
    Part(
        slot="drop",
        name="capacity",
        help="what an expert cannot take is dropped",
        source="megatron-core 0.19.2 moe_utils.py:957; arXiv 2101.03961, Eq. 3",
        is_on=lambda s: s.moe_expert_capacity_factor is not None and not registry.local_experts(s),
        build=lambda config: _of(Capacity, config),
        reference=lambda config: _of(Reference, config),
        tried="--moe-expert-capacity-factor 1.0",
    ),
    Part(
        slot="drop",
        name="heterogeneous",
        help="the same, where experts with an FFN take fewer tokens than those without",
        source="arXiv 2410.07348",
        settings=Settings,
        is_on=lambda s: (
            s.moe_expert_capacity_factor is not None and bool(registry.local_experts(s))
        ),
        build=lambda config: _of_several(HeterogeneousCapacity, config),
        reference=lambda config: _of_several(HeterogeneousReference, config),
        rules=lambda s: tau_rules(s, "moe_expert_capacity_factor"),
        tried="--moe-expert-capacity-factor 1.0 --grove-zero-experts 2 --grove-copy-experts 1",
        free=("grove_local_tau",),
    ),
)
