"""DeepSeekMoE's balance of devices, and DeepSeek-V2's of what is sent to them.

A device is a block of consecutive experts. How many there are is part of the loss and not of the
layout, so that every expert-parallel size trains the same model.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...checks.problem import Problem
from ...checks.rules import Check
from ...functional.groups import group_map, group_probs
from ..part import Balance, Part, experts_of


@dataclass
class Settings:
    """Balance of devices."""

    grove_device_loss_coeff: float = 0.0
    """Weight of DeepSeekMoE's device-level balance loss. 0: none."""

    grove_communication_loss_coeff: float = 0.0
    """Weight of DeepSeek-V2's communication balance loss, of the tokens that every device gets;
    with --moe-router-group-topk. 0: none."""

    grove_loss_devices: int | None = None
    """Devices that these losses balance, blocks of consecutive experts; by default
    --moe-router-num-groups."""


def devices_of(settings: Any) -> int | None:
    """D, or None if nobody said."""
    found: int | None = settings.grove_loss_devices or settings.moe_router_num_groups
    return found


class DeviceLoss:
    """coeff * sum_d f'_d P'_d: f' the mean of a device's f_i = E / (K T) count_i, P' the sum of its
    experts' mean probabilities.

    Args:
        devices: D.
        coefficient: weight.
    """

    name = "device_loss"

    def __init__(self, devices: int, coefficient: float) -> None:
        self.devices, self.coefficient = devices, coefficient

    def __call__(self, balance: Balance) -> Tensor:
        pairs_D = group_probs(balance.counted_TE.long(), self.devices).sum(0)
        return self._loss(balance, pairs_D, balance.per_token)

    def _loss(self, balance: Balance, load_D: Tensor, per_token: int) -> Tensor:
        load_D, tokens = balance.totals(load_D)
        f_D = self.devices * load_D / (per_token * tokens)
        mean_D = group_probs(balance.distribution_TE, self.devices).sum(0) / tokens
        return self.coefficient * (f_D * mean_D).sum()


class CommunicationLoss(DeviceLoss):
    """coeff * sum_d f''_d P''_d: f'' = D / (M T) times the tokens sent to a device.

    Args:
        chosen: M, the devices of a token.
    """

    name = "communication_loss"

    def __init__(self, devices: int, coefficient: float, chosen: int) -> None:
        super().__init__(devices, coefficient)
        self.chosen = chosen

    def __call__(self, balance: Balance) -> Tensor:
        selected_TE = balance.seen.without_padding(balance.routed.selected_TE)
        return self._loss(balance, group_map(selected_TE, self.devices).sum(0), self.chosen)


class Reference:
    """Device by device and expert by expert."""

    def __init__(self, devices: int, coefficient: float, chosen: int | None = None) -> None:
        self.devices, self.coefficient, self.chosen = devices, coefficient, chosen

    def __call__(self, balance: Balance) -> Tensor:
        tokens = int(balance.seen.tokens(balance.counted_TE))
        num_experts = balance.counted_TE.shape[1]
        size = num_experts // self.devices
        selected_TE = balance.seen.without_padding(balance.routed.selected_TE)
        total = torch.zeros((), dtype=balance.distribution_TE.dtype)
        for d in range(self.devices):
            experts = range(d * size, (d + 1) * size)
            mean = sum(balance.distribution_TE[:, i].sum() / tokens for i in experts)
            if self.chosen is None:
                counts = [int(balance.counted_TE[:, i].sum()) for i in experts]
                f = sum(num_experts / (balance.per_token * tokens) * c for c in counts) / size
            else:
                met = sum(bool(row[list(experts)].any()) for row in selected_TE)
                f = self.devices / (self.chosen * tokens) * met
            total = total + f * mean
        return self.coefficient * total


def _rules(settings: Any, name: str) -> list[Problem]:
    devices, experts = devices_of(settings), experts_of(settings)
    check = Check(settings, grove_loss_devices=devices, num_experts=experts)
    broken = {
        f"{{{name}}} needs the number of devices, {{grove_loss_devices}} or "
        "{moe_router_num_groups}; give one": devices is None,
        "{grove_loss_devices} is not 2 or more that divide {num_experts}; correct it": (
            devices is not None and (devices < 2 or (experts and experts % devices))
        ),
    }
    return [*check.finite(name, "0 is none"), *check.those(broken)]


def communication_rules(settings: Any) -> list[Problem]:
    sentence = (
        "{grove_communication_loss_coeff} is of tokens that are limited to some devices, "
        "{moe_router_group_topk}; give it, or remove this"
    )
    check, own = Check(settings), settings.moe_router_num_groups
    others = own and settings.grove_loss_devices not in (None, own)
    broken = {
        sentence: not settings.moe_router_group_topk,
        "{grove_loss_devices} is not {moe_router_num_groups}, of which tokens are limited to some; "
        "remove it": others,
    }
    return [*_rules(settings, "grove_communication_loss_coeff"), *check.those(broken)]


PARTS = (
    Part(
        slot="loss",
        name="devices",
        help="balance over devices, blocks of experts",
        source="arXiv 2401.06066, Eq. 15-17",
        settings=Settings,
        switch="grove_device_loss_coeff",
        formula="loss = coeff sum_d f_d P_d\n"
        "f_d = D / (K T) sum_{i in d} counted_i, P_d = sum_{i in d} mean_t p[t, i]",
        when="To balance ranks and leave experts inside one free, with a small or no loss over "
        "experts. With as many devices as experts it is the loss over experts; what it "
        "balances need not be the layout of the job.",
        is_on=lambda s: bool(s.grove_device_loss_coeff),
        build=lambda c: DeviceLoss(devices_of(c) or 0, c.grove_device_loss_coeff),
        reference=lambda c: Reference(devices_of(c) or 0, c.grove_device_loss_coeff),
        rules=lambda s: _rules(s, "grove_device_loss_coeff"),
        tried="--grove-device-loss-coeff 0.1 --grove-loss-devices 4",
        free=("grove_device_loss_coeff", "grove_loss_devices"),
    ),
    Part(
        slot="loss",
        name="communication",
        help="balance of the tokens that devices get",
        source="arXiv 2405.04434, Eq. 29-31",
        settings=Settings,
        switch="grove_communication_loss_coeff",
        formula="loss = coeff sum_d f_d P_d\n"
        "f_d = D / (M T) (tokens with a selected expert in d), P_d = sum_{i in d} mean_t p[t, i]",
        when="With tokens that are limited to M of D groups, where what a device receives is the "
        "limit: it counts a token once for a device, however many of its experts are there. "
        "It says nothing of experts inside a device.",
        is_on=lambda s: bool(s.grove_communication_loss_coeff),
        build=lambda c: CommunicationLoss(
            devices_of(c) or 0, c.grove_communication_loss_coeff, c.moe_router_group_topk
        ),
        reference=lambda c: Reference(
            devices_of(c) or 0, c.grove_communication_loss_coeff, c.moe_router_group_topk
        ),
        rules=communication_rules,
        tried="--grove-communication-loss-coeff 0.1 --moe-router-num-groups 4 "
        "--moe-router-group-topk 2 --grove-group-score max",
        free=("grove_communication_loss_coeff",),
    ),
)
