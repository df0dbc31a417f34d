"""Gather and scatter by distinct positions; each is the other's gradient.

Autograd's own ``x[index]`` has to assume that positions repeat: its gradient sorts or adds
atomically. Ours never repeat, so both directions are plain copies, the same bits every time.
"""

from typing import Any

import torch
from torch import Tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return x.reshape(-1).index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _scattered(grads[0], index, ctx.shape, 0.0), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, index: Tensor, shape: tuple[int, ...], fill: float
    ) -> Tensor:
        ctx.save_for_backward(index)
        return _scattered(values, index, shape, fill)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (index,) = ctx.saved_tensors
        return grads[0].reshape(-1).index_select(0, index), None, None, None


def _scattered(values: Tensor, index: Tensor, shape: tuple[int, ...], fill: float) -> Tensor:
    out = values.new_full(shape, fill)
    out.view(-1).scatter_(0, index, values)
    return out


def gather_distinct(x: Tensor, index: Tensor) -> Tensor:
    """``x.flatten()[index]``: [n] for distinct positions ``index`` [n] int64; differentiable."""
    gathered: Tensor = _Gather.apply(x, index)  # type: ignore[no-untyped-call]
    return gathered


def scatter_distinct(
    values: Tensor, index: Tensor, shape: tuple[int, ...], fill: float = 0.0
) -> Tensor:
    """A tensor of ``shape`` full of ``fill``, with ``values`` [n] at distinct flat positions.

    Differentiable in ``values``.
    """
    scattered: Tensor = _Scatter.apply(  # type: ignore[no-untyped-call]
        values, index, shape, fill
    )
    return scattered


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TE: Tensor, order_E: Tensor, inverse_E: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_E)
        return x_TE.index_select(1, order_E)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse_E,) = ctx.saved_tensors
        return grads[0].index_select(1, inverse_E), None, None


def permute_columns(x_TE: Tensor, order_E: Tensor, inverse_E: Tensor) -> Tensor:
    """``x[:, order]``, [T, E]; differentiable in x.

    Args:
        order_E: every column once, [E] int64.
        inverse_E: where every column has gone, [E] int64.
    """
    permuted: Tensor = _Permute.apply(x_TE, order_E, inverse_E)  # type: ignore[no-untyped-call]
    return permuted
