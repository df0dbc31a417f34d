"""Attention of a token's experts to each other, each with a query, key and value of one number.

P_i = sum_j softmax_j(q_i k_j) v_j (arXiv 2405.17976, section 2.1). The scores of T tokens are
[T, N, N]; they are made for some tokens at a time, forwards and again backwards, and never stand in
memory whole.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Scores that are in memory at a time: 16 MiB of fp32.
_SCORES = 2**22


def expert_attention(query_TN: Tensor, key_TN: Tensor, value_TN: Tensor) -> Tensor:
    """P [T, N] of queries, keys and values [T, N], all of one dtype, fp32 or wider."""
    attended: Tensor = _ExpertAttention.apply(  # type: ignore[no-untyped-call]
        query_TN, key_TN, value_TN
    )
    return attended


def _attend(query_TN: Tensor, key_TN: Tensor) -> Tensor:
    """The softmax of some tokens' scores, [T, N, N]."""
    # Of one number each, the largest score is at one end of the keys.
    least_T1, most_T1 = key_TN.aminmax(dim=1, keepdim=True)
    largest_TN = query_TN * torch.where(query_TN > 0, most_T1, least_T1)
    scores_TNN = query_TN.unsqueeze(2) * key_TN.unsqueeze(1)
    weights_TNN = scores_TNN.sub_(largest_TN.unsqueeze(2)).exp_()
    return weights_TNN.div_(weights_TNN.sum(-1, keepdim=True))


class _ExpertAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_TN: Tensor, key_TN: Tensor, value_TN: Tensor) -> Tensor:
        attended_TN = torch.empty_like(value_TN)
        for some in _pieces(query_TN):
            weights_TNN = _attend(query_TN[some], key_TN[some])
            attended_TN[some] = (weights_TNN @ value_TN[some].unsqueeze(2)).squeeze(2)
        ctx.save_for_backward(query_TN, key_TN, value_TN, attended_TN)
        return attended_TN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        saved = ctx.saved_tensors
        grads = [torch.empty_like(saved[0]) for _ in range(3)]
        for some in _pieces(grad_TN):
            query, key, value, attended = (tensor[some] for tensor in saved)
            grad = grad_TN[some]
            weights_TNN = _attend(query, key)
            # d score_ij = grad_i weight_ij (v_j - P_i); its rows times k and its columns times q.
            rows_TN2 = weights_TNN @ torch.stack([value * key, key], dim=2)
            by_query = grad * query
            columns_TN3 = weights_TNN.mT @ torch.stack([grad, by_query, by_query * attended], dim=2)
            grads[0][some] = grad * (rows_TN2[..., 0] - attended * rows_TN2[..., 1])
            grads[1][some] = value * columns_TN3[..., 1] - columns_TN3[..., 2]
            grads[2][some] = columns_TN3[..., 0]
        return grads[0], grads[1], grads[2]


def _pieces(rows_TN: Tensor) -> list[slice]:
    """Of the tokens."""
    tokens, experts = rows_TN.shape
    size = max(1, _SCORES // experts**2)
    return [slice(first, first + size) for first in range(0, tokens, size)]
