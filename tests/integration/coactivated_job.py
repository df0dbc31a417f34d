"""Runs on a rank: real training of a router that begins with sets of groups met together.

Made to be so: before the first step the rows of every router's weight get a direction that the
groups of a set, which lie scattered, have in common. From there on training moves them as it will;
what is recorded is what it routed.
"""

from typing import Any

import torch

from tests.integration.metrics_job import train_and_keep_routing

SETS = 4
_STRENGTH = 0.6


def set_of_groups(groups: int) -> list[int]:
    """The set of every group: neighbours are of different ones."""
    return [group % SETS for group in range(groups)]


def train(folder: str, argv: list[str]) -> None:
    """As :func:`train_and_keep_routing`."""
    from megatron.training import training

    train_step = training.train_step
    is_planted: list[bool] = []

    def planting_step(forward: Any, data: Any, model: Any, *rest: Any, **named: Any) -> Any:
        if not is_planted:
            is_planted.append(True)
            _plant(model)
        return train_step(forward, data, model, *rest, **named)

    training.train_step = planting_step
    train_and_keep_routing(folder, argv)


def _plant(models: list[torch.nn.Module]) -> None:
    from grove_megatron.moe.layer import GroveMoELayer

    generator = torch.Generator().manual_seed(0)
    for layer in (m for model in models for m in model.modules()):
        if not isinstance(layer, GroveMoELayer):
            continue
        weight_EH = layer.router.weight.data
        experts, hidden = weight_EH.shape
        groups = layer.config.grove_num_groups
        directions = torch.randn(SETS, hidden, generator=generator)
        of_groups = directions[torch.tensor(set_of_groups(groups))]
        weight_EH += _STRENGTH * of_groups.repeat_interleave(experts // groups, 0).to(weight_EH)
