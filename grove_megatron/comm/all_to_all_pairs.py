"""All-to-all of routed pairs: a position and a weight each, in one exchange."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .all_to_all import exchange_rows


class _AllToAllPairs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        codes: Tensor,
        send: tuple[int, ...],
        receive: tuple[int, ...],
        group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor]:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        # Both halves as integers of one width: nothing on the way may read them as numbers.
        word = torch.int32 if values.dtype == torch.float32 else torch.int64
        records = torch.stack([values.view(word), codes.to(word)], dim=1)
        received = exchange_rows(records, send, receive, group)
        received_codes = received[:, 1].to(torch.int64)
        ctx.mark_non_differentiable(received_codes)
        return received[:, 0].contiguous().view(values.dtype), received_codes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        grad = exchange_rows(grads[0], ctx.receive, ctx.send, ctx.group)
        return grad, None, None, None, None


def all_to_all_pairs(
    values: Tensor,
    codes: Tensor,
    send: Sequence[int],
    receive: Sequence[int],
    group: dist.ProcessGroup,
) -> tuple[Tensor, Tensor]:
    """Exchange (value, code) pairs between the ranks of ``group``.

    Args:
        values: [P] fp32 or fp64, ordered by destination rank; differentiable.
        codes: [P] int64, not negative; below 2^31 with fp32 values.
        send, receive: pairs for and from every rank.

    Returns:
        values and codes that came, ordered by source rank.
    """
    pairs: tuple[Tensor, Tensor] = _AllToAllPairs.apply(  # type: ignore[no-untyped-call]
        values, codes, tuple(send), tuple(receive), group
    )
    return pairs
