"""How Hugging Face tensors become one rank's Megatron tensor.

Every transform only moves entries: it concatenates, reorders and slices. The same code therefore
serves weights, gradients, and the index of every entry.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorParallel:
    """This rank's place in the tensor-parallel group that splits a parameter."""

    rank: int
    size: int

    def slice(self, tensor: Tensor, dim: int) -> Tensor:
        """The rank's equal part of ``tensor`` along ``dim``.

        Raises:
            ValueError: the size does not divide.
        """
        if tensor.shape[dim] % self.size:
            raise ValueError(
                f"tensor dimension ({tensor.shape[dim]}) is not a multiple of the tensor-parallel "
                f"size ({self.size}); use a size that divides it"
            )
        return tensor.chunk(self.size, dim)[self.rank]


class Transform(Protocol):
    """Hugging Face tensors of one parameter -> the tensor on one tensor-parallel rank."""

    def local(self, tensors: Sequence[Tensor], tp: TensorParallel) -> Tensor: ...


@dataclass(frozen=True)
class Replicated:
    """The same tensor on every rank."""

    def local(self, tensors: Sequence[Tensor], tp: TensorParallel) -> Tensor:
        (tensor,) = tensors
        return tensor


@dataclass(frozen=True)
class Split:
    """Split along one dimension: 0 for column-parallel and vocabulary, 1 for row-parallel."""

    dim: int

    def local(self, tensors: Sequence[Tensor], tp: TensorParallel) -> Tensor:
        (tensor,) = tensors
        return tp.slice(tensor, self.dim)


@dataclass(frozen=True)
class GateUp:
    """gate_proj, up_proj, each [F, H] -> linear_fc1 [2F/tp, H]: a rank's gate, then its up."""

    def local(self, tensors: Sequence[Tensor], tp: TensorParallel) -> Tensor:
        gate, up = tensors
        return torch.cat([tp.slice(gate, 0), tp.slice(up, 0)])


@dataclass(frozen=True)
class QueryKeyValue:
    """q_proj, k_proj, v_proj -> linear_qkv: per query group its queries, its key, its value.

    Args:
        num_query_groups: key/value heads of the whole model.
    """

    num_query_groups: int

    def local(self, tensors: Sequence[Tensor], tp: TensorParallel) -> Tensor:
        groups = [t.reshape(self.num_query_groups, -1, *t.shape[1:]) for t in tensors]
        # Rows, not groups, are split: with fewer groups than ranks a group is cut.
        return tp.slice(torch.cat(groups, dim=1).reshape(-1, *tensors[0].shape[1:]), 0)
