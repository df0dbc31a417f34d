"""Slots that one part fills, and the flag that says which."""

from dataclasses import dataclass, field, fields
from typing import Any

from .part import Slot


def _choice(slot: Slot, default: str | None) -> Any:
    return field(default=default, metadata={"slot": slot})


@dataclass
class Choices:
    """What the router does, one part of each kind."""

    grove_router_selector: str = _choice("selector", "topk")
    """How experts are selected: the best of every token, or by a rule of its own, which weighs them
    too and reads no scoring, no expert bias and no limits."""

    grove_router_scoring: str = _choice("scoring", "grove")
    """How experts are selected and weighed."""

    grove_group_score: str = _choice("select", "megatron")
    """How --moe-router-group-topk ranks the groups of --moe-router-num-groups."""

    grove_aux_loss_counts: str = _choice("counts", "scores")
    """What auxiliary losses count as the load of an expert."""

    grove_bias_update_rule: str | None = _choice("update", None)
    """How the bias of --moe-router-enable-expert-bias moves after every global batch; by default
    rms with grove scoring, sign with Megatron's."""

    grove_bias_rate_decay_style: str = _choice("schedule", "constant")
    """How --moe-router-bias-update-rate goes to --grove-bias-rate-min over
    --grove-bias-rate-decay-iters."""


def flag_fields() -> dict[Slot, str]:
    """The setting of every slot that one part fills."""
    return {f.metadata["slot"]: f.name for f in fields(Choices)}
