"""This rank's parameters under names that are the same on every rank.

Megatron counts layers per pipeline stage and experts per expert-parallel rank; the name table
counts them over the whole model.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.utils import unwrap_model

from ..model.table import EXPERT_BIAS
from .transforms import TensorParallel

_LAYER = re.compile(r"(?<=decoder\.layers\.)\d+")
_EXPERT = re.compile(
    r"(?P<block>.*\.(?:experts|adjugate_experts))\."
    r"(?:local_experts\.(?P<sequential>\d+)\.|linear_fc[12]\.weight(?P<grouped>\d+)$)"
)
_STACKED = re.compile(r".*\.(?:experts|adjugate_experts)\.linear_fc[12]\.weight$")


@dataclass(frozen=True)
class LocalParameter:
    """A parameter of this rank, and which part of the whole one it is.

    Experts that are stacked in one parameter are as many of these, each with its ``index``.
    """

    global_name: str
    stored: torch.nn.Parameter
    tensor_parallel: TensorParallel
    index: int | None = None

    @property
    def tensor(self) -> torch.Tensor:
        return self.stored if self.index is None else self.stored[self.index]

    @property
    def main_grad(self) -> torch.Tensor:
        """The gradient as DDP has reduced it."""
        grad: torch.Tensor = self.stored.main_grad
        return grad if self.index is None else grad[self.index]


def local_parameters(models: list[Any]) -> Iterator[LocalParameter]:
    """All parameters of this rank's model chunks, wrapped or not."""
    for model in unwrap_model(models):
        for name, tensor in model.named_parameters():
            indices = range(len(tensor)) if _STACKED.match(name) and tensor.dim() == 3 else [None]
            for index in indices:
                own = name if index is None else f"{name}{index}"
                yield LocalParameter(global_name(model, own), tensor, _tensor_parallel(own), index)


def local_biases(models: list[Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The expert biases of this rank's model chunks, by global names."""
    for model in unwrap_model(models):
        for name, buffer in model.named_buffers():
            if name.endswith(EXPERT_BIAS.name):
                yield global_name(model, name), buffer


def global_name(model: torch.nn.Module, name: str) -> str:
    """A parameter's name with the numbers of layer and expert in the whole model.

    Args:
        model: that has it, not wrapped.
        name: in this model.
    """
    if match := _EXPERT.match(name):
        kind = "sequential" if match["sequential"] else "grouped"
        start, end = match.span(kind)
        name = f"{name[:start]}{_number(model, match['block'], int(match[kind]))}{name[end:]}"
    if match := _LAYER.search(name):
        layer = model.get_submodule(f"decoder.layers.{match[0]}")
        start, end = match.span()
        name = f"{name[:start]}{layer.layer_number - 1}{name[end:]}"
    return name


def _number(model: torch.nn.Module, block: str, local: int) -> int:
    """Of an expert in the whole model."""
    layer, _, kind = block.rpartition(".")
    # Megatron's own layer has experts in their order alone.
    held = getattr(model.get_submodule(layer), "held", None)
    if held is not None and (numbers := held(kind)) is not None:
        return int(numbers[local])
    experts = model.get_submodule(block)
    return mpu.get_expert_model_parallel_rank() * int(experts.num_local_experts) + local


def _tensor_parallel(name: str) -> TensorParallel:
    if _EXPERT.match(name):
        return TensorParallel(
            mpu.get_expert_tensor_parallel_rank(), mpu.get_expert_tensor_parallel_world_size()
        )
    return TensorParallel(
        mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size()
    )
