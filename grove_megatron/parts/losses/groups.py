"""A load balancing loss over the groups of adjugates."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...checks.problem import Problem
from ...checks.rules import Check
from ...functional.balance import group_balancing_loss
from ...functional.groups import group_map
from ..part import Balance, Part

NAME = "group_load_balancing_loss"
"""In Megatron's metrics tracker."""


@dataclass
class Settings:
    """Balance of groups."""

    grove_group_aux_loss_coeff: float = 0.0
    """Weight of a load balancing loss over groups, on top of those over experts: the Switch
    Transformer's with groups in place of experts. 0: none."""


class GroupLoss:
    """See functional/balance.py."""

    name = NAME

    def __init__(self, num_groups: int, coefficient: float) -> None:
        self.num_groups, self.coefficient = num_groups, coefficient

    def __call__(self, balance: Balance) -> Tensor:
        touched_G = group_map(balance.counted_TE, self.num_groups).sum(0)
        totals = balance.totals(touched_G)
        return group_balancing_loss(balance.distribution_TE, *totals, self.coefficient)


class Reference(GroupLoss):
    """Group by group and token by token."""

    def __call__(self, balance: Balance) -> Tensor:
        size = balance.counted_TE.shape[1] // self.num_groups
        blocks = [slice(g * size, (g + 1) * size) for g in range(self.num_groups)]
        met = [sum(bool(row[b].any()) for row in balance.counted_TE) for b in blocks]
        tokens = int(balance.seen.tokens(balance.counted_TE))
        means = [balance.distribution_TE[:, b].sum() / tokens for b in blocks]
        shares = [m / sum(met) * mean for m, mean in zip(met, means, strict=True)]
        return self.coefficient * self.num_groups * torch.stack(shares).sum()


def rules(settings: Any) -> list[Problem]:
    check = Check(settings)
    sentence = (
        "{grove_group_aux_loss_coeff} has nothing to balance with {grove_num_groups}; remove it"
    )
    one = check.those({sentence: settings.grove_num_groups == 1})
    return [*check.finite("grove_group_aux_loss_coeff", "0 is none")] or [*one]


PARTS = (
    Part(
        slot="loss",
        name="groups",
        help="balance over the groups of adjugates",
        source="arXiv 2101.03961, Eq. 4-6, with groups for experts",
        settings=Settings,
        switch="grove_group_aux_loss_coeff",
        formula="loss = coeff G sum_g f_g P_g\n"
        "f_g = t_g / sum_l t_l, t_g = tokens with a counted expert in g\n"
        "P_g = sum_{i in g} mean_t p[t, i]",
        when="Where adjugates, not experts, are what waits: it balances what a group's adjugate "
        "computes. It is one more pull on the same logits, beside losses over experts or an "
        "expert bias.",
        is_on=lambda s: bool(s.grove_group_aux_loss_coeff),
        build=lambda c: GroupLoss(c.grove_num_groups, c.grove_group_aux_loss_coeff),
        reference=lambda c: Reference(c.grove_num_groups, c.grove_group_aux_loss_coeff),
        rules=rules,
        tried="--grove-group-aux-loss-coeff 0.1",
        free=("grove_group_aux_loss_coeff",),
        needs_groups=True,
    ),
)
