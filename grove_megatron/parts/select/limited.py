"""Group-limited selection: from the experts of the best groups alone.

The groups are those of ``--moe-router-num-groups``, devices or nodes, not those of the adjugates.
Megatron scores a group by the sum of its best (K // chosen groups) experts, which is DeepSeek-V2's
rule at 1 and DeepSeek-V3's at 2, and neither at another.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...checks.problem import Problem
from ...checks.rules import Check
from ..part import Part, experts_of


class LimitedTo:
    """Experts outside the best groups get -inf.

    Args:
        groups: of experts.
        chosen: of them, per token.
        counted: a group's score is the sum of so many of its best experts.
    """

    def __init__(self, groups: int, chosen: int, counted: int) -> None:
        self.groups, self.chosen, self.counted = groups, chosen, counted

    def __call__(self, scores_TE: Tensor) -> Tensor:
        by_group = scores_TE.reshape(scores_TE.shape[0], self.groups, -1)
        group_scores = by_group.topk(self.counted, dim=-1).values.sum(-1)
        index = group_scores.topk(self.chosen, dim=-1, sorted=False).indices
        is_chosen = torch.zeros_like(group_scores, dtype=torch.bool).scatter(1, index, True)
        outside = ~is_chosen.unsqueeze(-1).expand_as(by_group)
        return by_group.masked_fill(outside, float("-inf")).reshape_as(scores_TE)


class Reference(LimitedTo):
    """Token by token."""

    def __call__(self, scores_TE: Tensor) -> Tensor:
        limited = torch.full_like(scores_TE, float("-inf"))
        size = scores_TE.shape[1] // self.groups
        for t, scores in enumerate(scores_TE.tolist()):
            groups = [scores[g * size : (g + 1) * size] for g in range(self.groups)]
            sums = [sum(sorted(group)[-self.counted :]) for group in groups]
            for g in sorted(range(self.groups), key=lambda g: -sums[g])[: self.chosen]:
                limited[t, g * size : (g + 1) * size] = scores_TE[t, g * size : (g + 1) * size]
        return limited


def _part(
    name: str, help: str, counted: Callable[[Any], int], source: str, *, sum_of: str, when: str
) -> Part:
    def of(kind: type[LimitedTo]) -> Callable[[Any], LimitedTo]:
        def build(config: Any) -> LimitedTo:
            groups, chosen = config.moe_router_num_groups, config.moe_router_group_topk
            return kind(groups, chosen, counted(config))

        return build

    return Part(
        slot="select",
        name=name,
        help=help,
        source=source,
        formula="s[t, i] -> -inf outside the M groups j of the largest S[t, j]\n"
        f"S[t, j] = {sum_of}",
        when=when,
        is_on=lambda s: (
            s.grove_group_score == name and bool(s.moe_router_group_topk or name != "megatron")
        ),
        build=of(LimitedTo),
        reference=of(Reference),
        rules=rules,
        tried=f"--grove-group-score {name} --moe-router-num-groups 4 --moe-router-group-topk 2",
    )


def rules(settings: Any) -> list[Problem]:
    groups, experts = settings.moe_router_num_groups, experts_of(settings)
    check = Check(settings, num_experts=experts)
    if settings.grove_group_score == "megatron":
        return []
    if not (groups and settings.moe_router_group_topk):
        sentence = (
            "{grove_group_score} needs {moe_router_num_groups} and {moe_router_group_topk}; give "
            "both, or remove it"
        )
        return [check.problem(sentence)]
    if settings.grove_group_score == "top2" and experts and experts // groups < 2:
        sentence = (
            "{grove_group_score} adds the two best experts of a group, and {moe_router_num_groups} "
            f"of {{num_experts}} have {experts // groups}; use max"
        )
        return [check.problem(sentence)]
    return []


PARTS = (
    _part(
        "megatron",
        "by as many of its best experts as each chosen group has to give",
        lambda config: config.moe_router_topk // config.moe_router_group_topk,
        "megatron-core 0.19.2 moe_utils.py:618",
        sum_of="the sum of the K // M largest s[t, i] of group j",
        when="To limit a token to M of the groups of --moe-router-num-groups, such as nodes, "
        "with the rule that is Megatron's. It is DeepSeek-V2's where K // M is 1 and "
        "DeepSeek-V3's where it is 2; a limit costs some freedom of choice.",
    ),
    _part(
        "max",
        "by its best expert, as DeepSeek-V2",
        lambda config: 1,
        "arXiv 2405.04434, section 2.1.2; DeepSeek-VL2@ef9f91e MoEGate",
        sum_of="the largest s[t, i] of group j",
        when="To train or load a model such as DeepSeek-V2 whatever K and M are. A group counts "
        "for its best expert alone, though a token takes several of it.",
    ),
    _part(
        "top2",
        "by its two best experts, as DeepSeek-V3",
        lambda config: 2,
        "arXiv 2412.19437, section 2.1.2; DeepSeek-V3@9b4e978 Gate",
        sum_of="the sum of the two largest s[t, i] of group j",
        when="To train or load a model such as DeepSeek-V3 whatever K and M are. Groups need two "
        "experts or more.",
    ),
)
