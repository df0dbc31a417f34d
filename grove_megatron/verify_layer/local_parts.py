"""The parameters of this rank's layer under names that are the same on every rank."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..moe.experts import GroupedExperts

_SEQUENTIAL = re.compile(r"experts\.local_experts\.(\d+)\.(.*)")


@dataclass(frozen=True)
class LocalPart:
    """A parameter, or one expert's part of a stacked one.

    Attributes:
        name: with experts counted over all ranks.
        stored: what the layer has.
        index: of the expert in it, None if it is not stacked.
    """

    name: str
    stored: torch.nn.Parameter
    index: int | None = None

    @property
    def tensor(self) -> Tensor:
        return self.stored if self.index is None else self.stored[self.index]

    @property
    def grad(self) -> Tensor | None:
        grad = self.stored.grad
        return grad if grad is None or self.index is None else grad[self.index]


def local_parts(layers: torch.nn.ModuleList) -> Iterator[LocalPart]:
    """Of one layer ``experts.<e>.<name>``, and the others as the layer names them; none of
    adjugates. Of several the same below ``layers.<number from 0>.``"""
    for number, layer in enumerate(layers):
        prefix = f"layers.{number}." if len(layers) > 1 else ""
        for part in _of_one(layer):
            yield replace(part, name=f"{prefix}{part.name}")


def _of_one(layer: Any) -> Iterator[LocalPart]:
    first = layer.local_expert_indices[0]
    for name, stored in layer.named_parameters():
        if name.startswith("adjugate_experts."):
            continue
        if match := _SEQUENTIAL.fullmatch(name):
            yield LocalPart(f"experts.{first + int(match[1])}.{match[2]}", stored)
        elif isinstance(layer.experts, GroupedExperts) and name.startswith("experts."):
            own = name.removeprefix("experts.")
            for index in range(stored.shape[0]):
                yield LocalPart(f"experts.{first + index}.{own}", stored, index)
        else:
            yield LocalPart(name, stored)
