"""How the rate of the expert bias decays, as Megatron's learning rate does without warm-up."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from ...checks.problem import Problem
from ...checks.rules import Check
from .. import registry
from ..part import Part

_RATE = "moe_router_bias_update_rate"


@dataclass
class Settings:
    """The rate of the expert bias."""

    grove_bias_rate_decay_iters: int | None = None
    """Iterations over which --moe-router-bias-update-rate decays."""

    grove_bias_rate_min: float = 0.0
    """Rate of the expert bias once decayed; with 0 the bias no longer moves."""


def rate_after(settings: Any, done: int) -> float:
    """The rate after ``done`` iterations: from its start, over the decay, to its minimum."""
    rate: float = getattr(settings, _RATE)
    part = registry.one(settings, "schedule")
    if part is None or part.name == "constant":
        return rate
    left = part.build(settings)(min(done / settings.grove_bias_rate_decay_iters, 1.0))
    decayed: float = left * rate + (1 - left) * settings.grove_bias_rate_min
    return decayed


def rules(settings: Any) -> list[Problem]:
    check, iterations = Check(settings), settings.grove_bias_rate_decay_iters
    constant = settings.grove_bias_rate_decay_style == "constant"
    broken = {
        f"{{{f.name}}} is set beside {{grove_bias_rate_decay_style}}, which does not read it; "
        "choose another style, or remove it": constant and getattr(settings, f.name) != f.default
        for f in fields(Settings)
    } | {
        "{grove_bias_rate_decay_iters} is not 1 or more beside {grove_bias_rate_decay_style}; give "
        "the iterations of the decay": not constant and (iterations is None or iterations < 1),
        "{grove_bias_rate_min} is not between 0 and {moe_router_bias_update_rate}, from which the "
        "rate decays; use 0 to stop the bias": (
            not constant and not 0 <= settings.grove_bias_rate_min <= getattr(settings, _RATE)
        ),
    }
    return [*check.finite(_RATE, "the paper's value is 0.001"), *check.those(broken)]


def _part(
    name: str,
    help: str,
    left: Callable[[float], float],
    reference: Callable[[float], float],
    *,
    formula: str,
    when: str,
) -> Part:
    decay = "" if name == "constant" else " --grove-bias-rate-decay-iters 4"
    return Part(
        slot="schedule",
        name=name,
        help=help,
        source="megatron-core 0.19.2 optimizer_param_scheduler.py; step: arXiv 2412.19437, 4.2",
        formula="rate -> left rate + (1 - left) min, g = done / iters, at most 1\n"
        + f"left = {formula}",
        when=when,
        settings=Settings,
        is_on=lambda s: s.moe_router_enable_expert_bias and s.grove_bias_rate_decay_style == name,
        build=lambda config: left,
        reference=lambda config: reference,
        rules=rules,
        free=("grove_bias_rate_decay_iters", "grove_bias_rate_min"),
        tried=f"--moe-router-enable-expert-bias --grove-bias-rate-decay-style {name}{decay}",
    )


PARTS = (
    _part(
        "constant",
        "not at all",
        lambda gone: 1.0,
        lambda gone: 1.0,
        formula="1",
        when="Unless the end of training is to be without it. The bias then moves by its whole "
        "rate until the last iteration.",
    ),
    _part(
        "linear",
        "on a line",
        lambda gone: 1 - gone,
        lambda gone: (100 - 100 * gone) / 100,
        formula="1 - g",
        when="To let the bias come to rest at a steady pace. Late in training a load that "
        "changes is followed slowly.",
    ),
    _part(
        "cosine",
        "on half a wave",
        lambda gone: 0.5 * (math.cos(math.pi * gone) + 1),
        lambda gone: math.cos(math.pi * gone / 2) ** 2,
        formula="(1 + cos(pi g)) / 2",
        when="Beside a cosine decay of the learning rate, to have both end together. Late in "
        "training a load that changes is followed slowly.",
    ),
    _part(
        "step",
        "at once after them, as DeepSeek-V3",
        lambda gone: float(gone < 1),
        lambda gone: 1.0 if gone < 1 else 0.0,
        formula="1 before the last of these iterations is done, then 0",
        when="To train as DeepSeek-V3 did, whose bias stood still for its last part. From then "
        "on nothing but a loss balances.",
    ),
)
