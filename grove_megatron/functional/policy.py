"""REINFORCE: the losses of tokens as what their choice of experts is learned from.

d E[L] / d theta = E[(L - B) d log pi / d theta] (arXiv 1511.06297, 2202.01169 section 3.3). Losses
are known at the end of the forward pass, and choices are made in every layer before. So the end
puts them into the gradient of columns that came along with the hidden states, and every layer reads
them there in the backward pass: with their weight in the whole loss, masks and scaling included.

The columns are two numbers, each as a sum of two, so that bf16 carries 16 of their bits: weight
times loss, and weight.
"""

from typing import Any

import torch
from torch import Tensor

COLUMNS = 4


class Learn(torch.autograd.Function):
    """Hands rewards on; back come gradients of the choices' log-probabilities and the baseline."""

    @staticmethod
    def forward(
        ctx: Any,
        reward: Tensor,
        log_policy_T: Tensor,
        baseline_T: Tensor,
        scales: tuple[float, float],
    ) -> Tensor:
        """``reward`` [..., 4] with T rows, as it is.

        Args:
            log_policy_T: of what each token chose.
            baseline_T: what its loss was expected to be.
            scales: of the policy's gradient, and of the baseline's squared error.
        """
        ctx.save_for_backward(baseline_T)
        ctx.scales, ctx.dtype = scales, log_policy_T.dtype
        return reward.view_as(reward)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (baseline_T,) = ctx.saved_tensors
        of_policy, of_baseline = ctx.scales
        columns = grad.reshape(-1, COLUMNS).to(baseline_T.dtype)
        weighed_T, weight_T = columns[:, 0] + columns[:, 1], columns[:, 2] + columns[:, 3]
        advantage_T = weighed_T - weight_T * baseline_T
        log_policy = (of_policy * advantage_T).to(ctx.dtype)
        return grad, log_policy, -2 * of_baseline * advantage_T, None


class Reward(torch.autograd.Function):
    """Hands losses on; back go these and their weights, as the gradient of ``reward``."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, reward: Tensor, place: slice) -> Tensor:
        """``losses`` [B, S], as they are.

        Args:
            reward: [S', B, 4], columns of this rank's part of the sequence.
            place: that part of S.
        """
        ctx.save_for_backward(losses)
        ctx.place, ctx.dtype = place, reward.dtype
        return losses.view_as(losses)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (losses,) = ctx.saved_tensors
        weight = grad.to(torch.promote_types(grad.dtype, torch.float32))
        columns = [_two(weight * losses.to(weight.dtype), ctx.dtype), _two(weight, ctx.dtype)]
        reward = torch.cat(columns, dim=-1).transpose(0, 1)[ctx.place]
        return grad, reward.contiguous(), None


def _two(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., 2] that sum to them."""
    # Wherever they are cast to bf16 on their way, both keep what they have.
    half = torch.float16 if dtype == torch.float16 else torch.bfloat16
    first = numbers.to(half).to(dtype)
    return torch.stack([first, (numbers - first.to(numbers.dtype)).to(dtype)], dim=-1)
