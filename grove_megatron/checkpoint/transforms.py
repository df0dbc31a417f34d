"""How Hugging Face tensors become one Megatron tensor, or one rank's part of it, and back.

Every transform only moves entries: it concatenates, reorders and slices. The same code therefore
serves weights, gradients, and the index of every entry, and what it makes can be taken apart
again bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..model import weights
from ..model.architecture import Model

Shape = tuple[int, ...]


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
    """Hugging Face tensors of one parameter <-> Megatron's whole tensor, or a rank's part."""

    def local(self, tensors: Sequence[Tensor], tp: TensorParallel) -> Tensor:
        """The part of one tensor-parallel rank."""

    def chunks(self, tensors: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
        """The whole tensor as (first row, rows), cut where Megatron's checkpoints cut it."""

    def split(self, whole: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        """The inverse: tensors of ``shapes``, possibly views of ``whole``."""

    def first_rows(self, shapes: Sequence[Shape]) -> list[int] | None:
        """Where each tensor begins in the whole, if it is a block of rows of it."""


@dataclass(frozen=True)
class _OneTensor:
    """Megatron has the tensor as Hugging Face has it."""

    def chunks(self, tensors: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
        (tensor,) = tensors
        return [(0, tensor)]

    def split(self, whole: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        return [whole]

    def first_rows(self, shapes: Sequence[Shape]) -> list[int] | None:
        return [0]


@dataclass(frozen=True)
class Replicated(_OneTensor):
    """The same tensor on every rank."""

    def local(self, tensors: Sequence[Tensor], tp: TensorParallel) -> Tensor:
        (tensor,) = tensors
        return tensor


@dataclass(frozen=True)
class Split(_OneTensor):
    """Split along one dimension: 0 for column-parallel and vocabulary, 1 for row-parallel."""

    dim: int

    def local(self, tensors: Sequence[Tensor], tp: TensorParallel) -> Tensor:
        (tensor,) = tensors
        return tp.slice(tensor, self.dim)


@dataclass(frozen=True)
class GateUp:
    """gate_proj, up_proj, each [F, H] -> linear_fc1 [2F/tp, H]: a rank's gate, then its up.

    In a checkpoint they are two chunks of one tensor [2F, H], so that another tensor-parallel
    size can slice each.
    """

    def local(self, tensors: Sequence[Tensor], tp: TensorParallel) -> Tensor:
        gate, up = tensors
        return torch.cat([tp.slice(gate, 0), tp.slice(up, 0)])

    def chunks(self, tensors: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
        gate, up = tensors
        return [(0, gate), (gate.shape[0], up)]

    def split(self, whole: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        return list(torch.split(whole, [shape[0] for shape in shapes]))

    def first_rows(self, shapes: Sequence[Shape]) -> list[int] | None:
        return [0, shapes[0][0]]


@dataclass(frozen=True)
class QueryKeyValue:
    """q_proj, k_proj, v_proj -> linear_qkv: per query group its queries, its key, its value.

    Args:
        num_query_groups: key/value heads of the whole model.
    """

    num_query_groups: int

    def local(self, tensors: Sequence[Tensor], tp: TensorParallel) -> Tensor:
        # Rows, not groups, are split: with fewer groups than ranks a group is cut.
        return tp.slice(self._join(tensors), 0)

    def chunks(self, tensors: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
        return [(0, self._join(tensors))]

    def split(self, whole: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        groups = whole.reshape(self.num_query_groups, -1, *whole.shape[1:])
        rows = [shape[0] // self.num_query_groups for shape in shapes]
        parts = torch.split(groups, rows, dim=1)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def first_rows(self, shapes: Sequence[Shape]) -> list[int] | None:
        return None

    def _join(self, tensors: Sequence[Tensor]) -> Tensor:
        groups = [t.reshape(self.num_query_groups, -1, *t.shape[1:]) for t in tensors]
        return torch.cat(groups, dim=1).reshape(-1, *tensors[0].shape[1:])


@dataclass(frozen=True)
class Recut:
    """Tensors that are cut in other places than the blocks of a weight.

    Args:
        of_blocks: how the blocks become the weight.
        blocks: their shapes; one after the other they have the entries that the tensors have.
    """

    of_blocks: Transform
    blocks: tuple[Shape, ...]

    def local(self, tensors: Sequence[Tensor], tp: TensorParallel) -> Tensor:
        return self.of_blocks.local(_recut(tensors, self.blocks), tp)

    def chunks(self, tensors: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
        return self.of_blocks.chunks(_recut(tensors, self.blocks))

    def split(self, whole: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        return _recut(self.of_blocks.split(whole, self.blocks), shapes)

    def first_rows(self, shapes: Sequence[Shape]) -> list[int] | None:
        return None


def _recut(tensors: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
    flat = [tensor.reshape(-1) for tensor in tensors]
    entries = flat[0] if len(flat) == 1 else torch.cat(flat)
    parts = torch.split(entries, [torch.Size(shape).numel() for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def transform_of(weight: weights.Weight, model: Model) -> Transform:
    """How the Hugging Face tensors of a weight become it, as its split says."""
    transforms: dict[weights.Split, Transform] = {
        weights.Split.WHOLE: Replicated(),
        weights.Split.ROWS: Split(0),
        weights.Split.COLUMNS: Split(1),
        weights.Split.GATED: GateUp(),
        weights.Split.QKV: QueryKeyValue(model.num_query_groups),
    }
    of_blocks = transforms[weight.split]
    return Recut(of_blocks, weight.shapes(model.sizes)) if weight.hf_blocks else of_blocks
