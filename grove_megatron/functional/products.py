"""The two products of the experts and the adjugates, each in one pass over the pairs.

    h_N, h_M = up(x_N)          every pair with its expert, every owner also with its group
    y_N      = down(a_N, a_M)   the adjugate's output is added to the owner's row

They are each other's transpose, so the gradient of one is made of the other. Shapes: x, y [N, H];
h [., 2F or 2h]; a [., F or h]; up weights [L, 2F, H] and [G, 2h, H], down [L, H, F] and [G, H, h].
The adjugates' part is None where experts run alone.
"""

from typing import Any

import torch
from torch import Tensor

from ..kernels import TORCH, Kernels, SegmentsLike


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        wide: Tensor,
        narrow: Tensor | None,
        segments: SegmentsLike,
        kernels: Kernels,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x, wide, narrow)
        ctx.segments, ctx.kernels = segments, kernels
        return kernels.fan_out(x, wide, narrow, segments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, wide, narrow = ctx.saved_tensors
        segments, kernels = ctx.segments, ctx.kernels
        p, q = grads[0].contiguous(), None if narrow is None else grads[1].contiguous()
        dwide, dnarrow = kernels.fan_weights(p, q, x, segments, False)
        dx = kernels.fan_in(p, q, wide, narrow, segments)
        return dx, dwide, dnarrow, None, None


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        p: Tensor,
        q: Tensor | None,
        wide: Tensor,
        narrow: Tensor | None,
        segments: SegmentsLike,
        kernels: Kernels,
    ) -> Tensor:
        ctx.save_for_backward(p, q, wide, narrow)
        ctx.segments, ctx.kernels = segments, kernels
        return kernels.fan_in(p, q, _transposed(wide), _transposed(narrow), segments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        p, q, wide, narrow = ctx.saved_tensors
        segments, kernels = ctx.segments, ctx.kernels
        grad = grads[0].contiguous()
        dwide, dnarrow = kernels.fan_weights(p, q, grad, segments, True)
        dp, dq = kernels.fan_out(grad, _transposed(wide), _transposed(narrow), segments)
        return dp, dq, dwide, dnarrow, None, None


def _transposed(weight: Tensor | None) -> Any:
    return None if weight is None else weight.transpose(1, 2)


def grouped_up(
    x: Tensor,
    wide: Tensor,
    narrow: Tensor | None,
    segments: SegmentsLike,
    kernels: Kernels = TORCH,
) -> tuple[Tensor, Tensor | None]:
    """x [N, H] to h [N, 2F] of the experts and, of the owner rows, [M, 2h] of the adjugates."""
    both: tuple[Tensor, Tensor | None] = _Up.apply(  # type: ignore[no-untyped-call]
        x, wide, narrow, segments, kernels
    )
    return both


def grouped_down(
    p: Tensor,
    q: Tensor | None,
    wide: Tensor,
    narrow: Tensor | None,
    segments: SegmentsLike,
    kernels: Kernels = TORCH,
) -> Tensor:
    """a [N, F] of the experts and [M, h] of the adjugates to y [N, H], summed on owner rows."""
    y: Tensor = _Down.apply(p, q, wide, narrow, segments, kernels)  # type: ignore[no-untyped-call]
    return y
