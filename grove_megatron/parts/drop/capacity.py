"""Token dropping: no expert takes more than its capacity."""

import math
from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import apply_router_token_dropping

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
        is_on=lambda s: s.moe_expert_capacity_factor is not None,
        build=lambda config: _of(Capacity, config),
        reference=lambda config: _of(Reference, config),
        tried="--moe-expert-capacity-factor 1.0",
    ),
)
