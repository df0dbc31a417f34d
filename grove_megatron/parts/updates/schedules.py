"""How the rate of the expert bias decays, as Megatron's learning rate does without warm-up."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...checks.flags import flag_of
from ...checks.problem import Problem
from .. import registry
from ..part import Part, not_finite

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
    style, minimum = settings.grove_bias_rate_decay_style, settings.grove_bias_rate_min
    rate, iterations = getattr(settings, _RATE), settings.grove_bias_rate_decay_iters
    problems = not_finite(settings, _RATE, hint="the paper's value is 0.001")
    if style == "constant":
        given = {name: getattr(settings, name) for name in vars(Settings())}
        problems += [
            Problem(
                flag_of(name),
                value,
                "is set beside --grove-bias-rate-decay-style (constant), which does not read it; "
                "choose another style, or remove it",
                ("--grove-bias-rate-decay-style",),
            )
            for name, value in given.items()
            if value != getattr(Settings, name)
        ]
        return problems
    if iterations is None or iterations < 1:
        text = (
            f"is not 1 or more beside --grove-bias-rate-decay-style ({style}); give the iterations "
            "of the decay"
        )
        about = ("--grove-bias-rate-decay-style",)
        problems.append(Problem("--grove-bias-rate-decay-iters", iterations, text, about))
    if not 0 <= minimum <= rate:
        text = (
            f"is not between 0 and --moe-router-bias-update-rate ({rate}), from which the rate "
            "decays; use 0 to stop the bias"
        )
        problems.append(Problem("--grove-bias-rate-min", minimum, text, (flag_of(_RATE),)))
    return problems


def _part(
    name: str, help: str, left: Callable[[float], float], reference: Callable[[float], float]
) -> Part:
    decay = "" if name == "constant" else " --grove-bias-rate-decay-iters 4"
    return Part(
        slot="schedule",
        name=name,
        help=help,
        source="megatron-core 0.19.2 optimizer_param_scheduler.py; step: arXiv 2412.19437, 4.2",
        settings=Settings,
        is_on=lambda s: s.moe_router_enable_expert_bias and s.grove_bias_rate_decay_style == name,
        build=lambda config: left,
        reference=lambda config: reference,
        rules=rules,
        free=("grove_bias_rate_decay_iters", "grove_bias_rate_min"),
        tried=f"--moe-router-enable-expert-bias --grove-bias-rate-decay-style {name}{decay}",
    )


PARTS = (
    _part("constant", "not at all", lambda gone: 1.0, lambda gone: 1.0),
    _part("linear", "on a line", lambda gone: 1 - gone, lambda gone: (100 - 100 * gone) / 100),
    _part(
        "cosine",
        "on half a wave",
        lambda gone: 0.5 * (math.cos(math.pi * gone) + 1),
        lambda gone: math.cos(math.pi * gone / 2) ** 2,
    ),
    _part(
        "step",
        "at once after them, as DeepSeek-V3",
        lambda gone: float(gone < 1),
        lambda gone: 1.0 if gone < 1 else 0.0,
    ),
)
