"""SwiGLU times the weight of every row, differentiable in both."""

from typing import Any

import torch
from torch import Tensor

from ..kernels import TORCH, Kernels


class _WeightedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(h, weight)
        ctx.kernels = kernels
        return kernels.weighted_swiglu(h, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        h, weight = ctx.saved_tensors
        dh, dweight = ctx.kernels.weighted_swiglu_grad(grads[0].contiguous(), h, weight)
        return dh, dweight, None


def weighted_swiglu(h: Tensor, weight: Tensor, kernels: Kernels = TORCH) -> Tensor:
    """silu(gate) * up * weight.

    Args:
        h: [n, 2f], gate and up side by side.
        weight: [n], of the routed pair; applied here, where the row is narrowest, as Megatron does.

    Returns:
        [n, f] in h's dtype, computed in fp32 or wider.
    """
    activated: Tensor = _WeightedSwiGLU.apply(h, weight, kernels)  # type: ignore[no-untyped-call]
    return activated
