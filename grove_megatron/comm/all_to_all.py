"""All-to-all of rows with uneven splits, and its gradient, which is the same the other way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .fake_group import exchange_with_copies, is_fake


class _AllToAllRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        send: tuple[int, ...],
        receive: tuple[int, ...],
        group: dist.ProcessGroup,
    ) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return start_exchange(rows, send, receive, group).finish()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = start_exchange(grads[0], ctx.receive, ctx.send, ctx.group).finish()
        return grad, None, None, None


@dataclass(frozen=True)
class Exchange:
    """An all-to-all under way; nobody may touch its buffers before it has finished."""

    sent: Tensor
    received: Tensor
    work: dist.Work | None

    def finish(self) -> Tensor:
        if self.work is not None:
            self.work.wait()
        return self.received


def start_exchange(
    rows: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup
) -> Exchange:
    """Start :func:`all_to_all_rows`, without a gradient."""
    rows = rows.contiguous()
    if is_fake(group):
        return Exchange(rows, exchange_with_copies(rows, send, receive, group), None)
    received = rows.new_empty((sum(receive), *rows.shape[1:]))
    work = dist.all_to_all_single(
        received,
        rows,
        output_split_sizes=list(receive),
        input_split_sizes=list(send),
        group=group,
        async_op=True,
    )
    return Exchange(rows, received, work)


def all_to_all_rows(
    rows: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup
) -> Tensor:
    """Exchange slices of rows between the ranks of ``group``; differentiable.

    Args:
        rows: [sum(send), ...], ordered by destination rank.
        send, receive: rows for and from every rank; 0 is normal.
        group: every rank of it must call, also with 0 rows.

    Returns:
        [sum(receive), ...], ordered by source rank. The input itself where the group has one rank.
    """
    if dist.get_world_size(group) == 1:
        return rows
    exchanged: Tensor = _AllToAllRows.apply(  # type: ignore[no-untyped-call]
        rows, tuple(send), tuple(receive), group
    )
    return exchanged


def gather_rows(rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """All-gather with uneven counts: [counts[rank], ...] -> [sum(counts), ...]; differentiable.

    The gradient is the reduce-scatter that belongs to it. Written as an all-to-all, because gloo
    has no uneven all-gather.
    """
    size = dist.get_world_size(group)
    if size == 1:
        return rows
    copies = rows.repeat(size, *[1] * (rows.dim() - 1))
    return all_to_all_rows(copies, [rows.shape[0]] * size, counts, group)


def scatter_sum_rows(rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Reduce-scatter with uneven counts: [sum(counts), ...] -> [counts[rank], ...].

    Differentiable; its gradient is :func:`gather_rows`.
    """
    size = dist.get_world_size(group)
    if size == 1:
        return rows
    mine = counts[dist.get_rank(group)]
    pieces = all_to_all_rows(rows, counts, [mine] * size, group)
    return pieces.reshape(size, mine, *rows.shape[1:]).sum(0)
