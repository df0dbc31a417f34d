"""What keeps experts balanced: the step of the bias, a loss over groups.

Shape suffixes: L layers, T tokens, E experts, G groups.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .groups import group_probs

Step = Callable[[Tensor, float], Tensor]
"""Counts [L, E] int64 of a global batch and a rate to what biases are moved by, fp64 [L, E]."""

# Below this the loads are equal (arXiv 2508.07785 has no such case: its Eq. 8 would divide by 0).
_BALANCED = 1e-12


def rms_step(counts_LE: Tensor, rate: float) -> Tensor:
    """What one global batch adds to the expert biases (arXiv 2508.07785, Eq. 7-8).

    -rate * (F - Q) / RMS(F - Q), where F_i is the part of all routed pairs that went to expert i,
    Q = 1 / E, and RMS(x) = sqrt(mean(x^2)). The RMS of a step is ``rate``, and its sum is 0.

    Args:
        counts_LE: [L, E] int64, tokens that selected each expert in the whole global batch.
        rate: the update rate, 0 or more.

    Returns:
        [L, E] fp64; 0 for a layer of equal loads (RMS below 1e-12) and for one without tokens.
    """
    error_LE = _error(counts_LE)
    rms_L1 = error_LE.square().mean(-1, keepdim=True).sqrt()
    return torch.where(rms_L1 < _BALANCED, 0.0, -rate * error_LE / rms_L1)


def sign_step(counts_LE: Tensor, rate: float) -> Tensor:
    """``rate`` up for what has less than the mean, down for what has more (arXiv 2408.15664)."""
    return -rate * _error(counts_LE).sign()


def error_step(counts_LE: Tensor, rate: float) -> Tensor:
    """``rate`` times the load error over the mean load (arXiv 2408.15664, section 4.3)."""
    return -rate * counts_LE.shape[-1] * _error(counts_LE)


def by_group(step: Step, groups: int) -> Step:
    """The step of whole groups of experts, by the loads of all of them."""

    def grouped(counts_LE: Tensor, rate: float) -> Tensor:
        size = counts_LE.shape[-1] // groups
        counts_LG = counts_LE.reshape(*counts_LE.shape[:-1], groups, size).sum(-1)
        return step(counts_LG, rate).repeat_interleave(size, dim=-1)

    return grouped


def _error(counts_LE: Tensor) -> Tensor:
    """F - Q, fp64."""
    num_experts = counts_LE.shape[-1]
    total_L1 = counts_LE.sum(-1, keepdim=True)
    # In integers equal loads differ from their mean by exactly 0, whatever E is.
    excess_LE = counts_LE * num_experts - total_L1
    return excess_LE.double() / (total_L1.clamp(min=1) * num_experts)


def group_balancing_loss(
    scores_TE: Tensor, touched_G: Tensor, num_tokens: Tensor, coeff: float
) -> Tensor:
    """The Switch Transformer's balancing loss (arXiv 2101.03961, Eq. 4-6) with groups for experts.

    coeff * G * sum_j f_j P_j, where f_j = t_j / sum_l t_l, t_j tokens have an expert in group j,
    and P_j is the mean probability of the group, sum_{i in G_j} softmax(z)_i over all tokens. A
    token counts once for a group, however many of its experts it has. It is ``coeff`` when all
    groups meet as many tokens, or have the same probability. Only P has a gradient.

    Args:
        scores_TE: [T, E] fp32, probabilities of this rank's tokens; rows of padding are 0.
        touched_G: [G] whole numbers, t of all ranks that share the batch.
        num_tokens: tokens of all these ranks without padding.
        coeff: weight of the loss.

    Returns:
        A scalar: this rank's part of the loss; the sum over the ranks is the loss.
    """
    num_groups = touched_G.numel()
    # A quotient of integers would be fp32.
    f_G = touched_G.to(scores_TE.dtype) / touched_G.sum().clamp(min=1)
    mean_G = group_probs(scores_TE, num_groups).sum(0) / num_tokens.clamp(min=1)
    return coeff * num_groups * (f_G * mean_G).sum()
