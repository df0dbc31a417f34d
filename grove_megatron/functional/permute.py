"""Copy rows out and sum rows back: the layer's two data movements, each other's gradient.

Neither adds atomically: a sum walks the list of rows that belong to its destination, so the
result is the same bits on every run, and 16-bit rows are summed in fp32.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels import TORCH, Kernels


@dataclass(frozen=True)
class RowMap:
    """Rows copied from a smaller tensor, and the way back.

    Attributes:
        index: [n] int64, the source row of every copy.
        bag_start: [sources + 1] int64; the copies of source s are
            ``bag_index[bag_start[s]:bag_start[s + 1]]``.
        bag_index: [n] int64, ascending within a bag.
    """

    index: Tensor
    bag_start: Tensor
    bag_index: Tensor

    @staticmethod
    def of(index: Tensor, copies_per_source: Tensor) -> "RowMap":
        start = torch.zeros(copies_per_source.numel() + 1, dtype=torch.int64, device=index.device)
        torch.cumsum(copies_per_source, 0, out=start[1:])
        return RowMap(index, start, index.argsort(stable=True))


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: RowMap, kernels: Kernels) -> Tensor:
        ctx.rows, ctx.kernels = rows, kernels
        return kernels.take_rows(x, rows.index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        rows: RowMap = ctx.rows
        grad = ctx.kernels.sum_rows(grads[0].contiguous(), rows.bag_start, rows.bag_index)
        return grad, None, None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, rows: RowMap, kernels: Kernels) -> Tensor:
        ctx.rows, ctx.kernels = rows, kernels
        return kernels.sum_rows(y, rows.bag_start, rows.bag_index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.kernels.take_rows(grads[0].contiguous(), ctx.rows.index), None, None


def expand_rows(x: Tensor, rows: RowMap, kernels: Kernels = TORCH) -> Tensor:
    """``x[rows.index]`` [n, H] as a fresh tensor, never a view of ``x`` [sources, H].

    Megatron's overlapped schedule frees the storage it hands to a stage; whatever an expert reads
    must therefore not alias it.
    """
    expanded: Tensor = _Expand.apply(x, rows, kernels)  # type: ignore[no-untyped-call]
    return expanded


def reduce_rows(y: Tensor, rows: RowMap, kernels: Kernels = TORCH) -> Tensor:
    """Sum copies to their sources: [n, H] -> [sources, H]; a source without copies gets 0."""
    reduced: Tensor = _Reduce.apply(y, rows, kernels)  # type: ignore[no-untyped-call]
    return reduced
