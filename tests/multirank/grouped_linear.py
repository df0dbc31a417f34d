"""What te.pytorch.GroupedLinear is to Megatron's TEGroupedMLP, in plain torch.

TransformerEngine computes on a GPU alone. With this in its place Megatron's own TEGroupedMLP runs
on a CPU: its recompute, its delayed weight gradients, and its parameters ``weight0, weight1, ...``.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor


class GroupedLinear(torch.nn.Module):
    """y = x W_i^T for the rows of expert i.

    With ``overlap_dispatch_backward_with_experts_wgrad`` the backward pass gives the gradient of x
    alone, and ``backward_dw`` those of the weights, as TransformerEngine's does.
    """

    def __init__(
        self,
        num_gemms: int,
        input_size: int,
        output_size: int,
        *,
        config: Any,
        init_method: Any,
        **unused: Any,
    ) -> None:
        super().__init__()
        self.num_gemms = num_gemms
        self.delayed = config.overlap_dispatch_backward_with_experts_wgrad
        for index in range(num_gemms):
            weight = torch.nn.Parameter(torch.empty(output_size, input_size))
            init_method(weight)
            weight.allreduce = False  # type: ignore[attr-defined]
            self.register_parameter(f"weight{index}", weight)
        self.pending: list[tuple[Tensor, Tensor, list[int]]] = []

    def forward(self, x: Tensor, m_splits: list[int]) -> tuple[Tensor, None]:
        if self.delayed:
            y: Tensor = _DelayedGradients.apply(x, self, m_splits)
            return y, None
        return self.product(x, m_splits), None

    def product(self, x: Tensor, m_splits: list[int]) -> Tensor:
        weights = [getattr(self, f"weight{i}") for i in range(self.num_gemms)]
        rows = zip(x.split(m_splits), weights, strict=True)
        return torch.cat([torch.nn.functional.linear(part, weight) for part, weight in rows])

    def backward_dw(self) -> None:
        if not self.delayed:
            return
        # Of the microbatch whose backward pass came first.
        x, grad, m_splits = self.pending.pop(0)
        for index, (rows, of_rows) in enumerate(
            zip(x.split(m_splits), grad.split(m_splits), strict=True)
        ):
            weight = getattr(self, f"weight{index}")
            weight.grad = of_rows.T @ rows + (0 if weight.grad is None else weight.grad)


class _DelayedGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: GroupedLinear, m_splits: list[int]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.module, ctx.m_splits = module, m_splits
        return module.product(x, m_splits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,), (grad,) = ctx.saved_tensors, grads
        ctx.module.pending.append((x, grad, ctx.m_splits))
        weights = [getattr(ctx.module, f"weight{i}") for i in range(ctx.module.num_gemms)]
        parts = zip(grad.split(ctx.m_splits), weights, strict=True)
        return torch.cat([part @ weight for part, weight in parts]), None, None


def grouped_mlp() -> Any:
    """A builder of experts for MoESubmodules: Megatron's TEGroupedMLP on the stand-in."""
    from megatron.core.transformer.moe.experts import GroupedMLPSubmodules, TEGroupedMLP

    submodules = GroupedMLPSubmodules(linear_fc1=GroupedLinear, linear_fc2=GroupedLinear)
    return partial(TEGroupedMLP, submodules=submodules)
