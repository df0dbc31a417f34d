"""The rules by which the expert bias moves after every global batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...checks.problem import Problem
from ...checks.rules import Check
from ...functional.balance import Step, by_group, error_step, rms_step, sign_step
from .. import registry
from ..part import Part
from ..scoring.grove import has_grove_scoring


@dataclass
class Settings:
    """What the bias balances."""

    grove_bias_level: Literal["experts", "groups"] = "experts"
    """What the expert bias balances: experts; or groups, whose experts move together by the load of
    all of them, so that adjugates are balanced and experts inside a group are free."""


def rule_of(settings: Any) -> str:
    """By default the paper's with its scoring, and Megatron's with Megatron's."""
    given: str | None = settings.grove_bias_update_rule
    return given or ("rms" if has_grove_scoring(settings) else "sign")


def of_groups(settings: Any) -> bool:
    """Do the experts of a group move together?"""
    return bool(settings.grove_bias_level == "groups")


class Reference:
    """Layer by layer and expert by expert, or group by group."""

    def __init__(self, rule: str, groups: int | None) -> None:
        self.rule, self.groups = rule, groups

    def __call__(self, counts_LE: Tensor, rate: float) -> Tensor:
        steps = []
        for counts in counts_LE.tolist():
            size = len(counts) // (self.groups or len(counts))
            loads = [sum(counts[i : i + size]) for i in range(0, len(counts), size)]
            mean, total = sum(loads) / len(loads), sum(loads) or 1
            errors = [(load - mean) / total for load in loads]
            rms = (sum(error**2 for error in errors) / len(errors)) ** 0.5
            if self.rule == "rms":
                moves = [-rate * e / rms if rms > 1e-12 else 0.0 for e in errors]
            elif self.rule == "sign":
                moves = [rate * ((e < 0) - (e > 0)) for e in errors]
            else:
                moves = [-rate * e * len(loads) for e in errors]
            steps.append([move for move in moves for _ in range(size)])
        return torch.tensor(steps, dtype=torch.float64)


def rules(settings: Any) -> list[Problem]:
    check = Check(settings)
    sentence = (
        "{grove_bias_level} needs groups, {grove_num_groups}; set their number, or use experts"
    )
    local = (
        "{grove_bias_level} is of groups of experts with an FFN, and --grove-zero-experts, "
        "--grove-copy-experts and --grove-constant-experts have none; remove it or them"
    )
    return [
        *check.those({local: of_groups(settings) and registry.local_experts(settings) > 0}),
        *check.one_of("grove_bias_level", ("experts", "groups"), "use experts"),
        *check.those({sentence: of_groups(settings) and not settings.grove_num_groups}),
    ]


def _part(name: str, help: str, step: Step, source: str, *, formula: str, when: str) -> Part:
    def build(config: Any) -> Callable[[Tensor, float], Tensor] | None:
        if of_groups(config):
            return by_group(step, config.grove_num_groups)
        # Megatron moves it by sign.
        return None if name == "sign" else step

    return Part(
        slot="update",
        name=name,
        help=help,
        source=source,
        formula=f"{formula}\n"
        "F_E = the share of each expert in all pairs of the global batch\n"
        "with --grove-bias-level groups: of each group, for all of its experts",
        when=when,
        settings=Settings,
        is_on=lambda s: s.moe_router_enable_expert_bias and rule_of(s) == name,
        build=build,
        reference=lambda c: Reference(name, c.grove_num_groups if of_groups(c) else None),
        rules=rules,
        free=("grove_bias_level",),
        tried=f"--moe-router-enable-expert-bias --grove-bias-update-rule {name}",
    )


PARTS = (
    _part(
        "rms",
        "by the load error, scaled to a root mean square of --moe-router-bias-update-rate; the "
        "default of grove scoring",
        rms_step,
        "arXiv 2508.07785, Eq. 7-8",
        formula="b_E -> b_E - rate (F_E - 1 / E) / rms(F_E - 1 / E)\n"
        "unmoved where the rms is below 1e-12",
        when="With grove scoring, as Grove MoE was trained: every step has one size, is larger "
        "for what is further off, and leaves the sum of the biases as it is. Near balance "
        "it still moves by the whole rate.",
    ),
    _part(
        "sign",
        "by one rate up or down, Megatron's rule; the default of its scoring",
        sign_step,
        "arXiv 2408.15664; megatron-core 0.19.2 moe_utils.py:1136",
        formula="b_E -> b_E - rate sign(F_E - 1 / E)",
        when="To train as DeepSeek-V3 did, and where runs are to be compared with Megatron's "
        "own. An expert that is a little off moves as much as one that is far off, and the "
        "sum of the biases drifts.",
    ),
    _part(
        "error",
        "by the load error over the mean load, times the rate",
        error_step,
        "arXiv 2408.15664, section 4.3",
        formula="b_E -> b_E - rate E (F_E - 1 / E)",
        when="For steps that get smaller as experts are balanced. Far from balance a step can be "
        "E - 1 rates and more than the scores differ by, so the rate has to be chosen for "
        "the number of experts.",
    ),
)
