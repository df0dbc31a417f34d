"""Weights in memory, with everything a source can do wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from grove_megatron.checkpoint.safetensors_io import NAME_OF
from grove_megatron.checkpoint.units import hf_shapes
from grove_megatron.checkpoint.weights import TensorInfo
from grove_megatron.model.architecture import Architecture


@dataclass
class StoredWeights:
    """A source of ``tensors``; those in ``unreadable`` cannot be read. Counts what is read."""

    tensors: dict[str, Tensor]
    unreadable: set[str] = field(default_factory=set)
    reads: list[str] = field(default_factory=list)

    def infos(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(tuple(t.shape), NAME_OF.get(t.dtype, str(t.dtype)), "memory")
            for name, t in self.tensors.items()
        }

    def read(self, name: str) -> Tensor:
        self.reads.append(name)
        if name in self.unreadable:
            raise ValueError(f"memory: {name} cannot be read")
        return self.tensors[name]

    def identity(self) -> dict[str, object]:
        return {"tensors": sorted(self.tensors)}


def random_weights(
    architecture: Architecture, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """All tensors of a model; the bias of the experts in fp32 as always."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).to(
            torch.float32 if name.endswith("expert_bias") else dtype
        )
        for name, shape in hf_shapes(architecture).items()
    }
