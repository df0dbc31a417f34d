"""All-to-all of rows and of the routed pairs on them: two exchanges in flight at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .all_to_all import start_exchange


@dataclass(frozen=True)
class Splits:
    """How many rows and how many pairs go to every rank of a group, and come from it."""

    sent_rows: Sequence[int]
    received_rows: Sequence[int]
    sent_pairs: Sequence[int]
    received_pairs: Sequence[int]


class _SendRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        values: Tensor,
        codes: Tensor,
        splits: Splits,
        group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.splits, ctx.group = splits, group
        # Both halves as integers of one width: nothing on the way may read them as numbers.
        word = torch.int32 if values.dtype == torch.float32 else torch.int64
        records = torch.stack([values.view(word), codes.to(word)], dim=1)
        pairs = start_exchange(records, splits.sent_pairs, splits.received_pairs, group)
        received_rows = start_exchange(rows, splits.sent_rows, splits.received_rows, group).finish()
        received = pairs.finish()
        received_codes = received[:, 1].to(torch.int64)
        ctx.mark_non_differentiable(received_codes)
        received_values = received[:, 0].contiguous().view(values.dtype)
        return received_rows, received_values, received_codes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        splits, group = ctx.splits, ctx.group
        pairs = start_exchange(grads[1], splits.received_pairs, splits.sent_pairs, group)
        rows = start_exchange(grads[0], splits.received_rows, splits.sent_rows, group)
        return rows.finish(), pairs.finish(), None, None, None


def send_rows(
    rows: Tensor, values: Tensor, codes: Tensor, splits: Splits, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Exchange rows and (value, code) pairs between the ranks of ``group``.

    Args:
        rows: [U, H], ordered by destination rank; differentiable.
        values: [P] fp32 or fp64, ordered by destination rank; differentiable.
        codes: [P] int64, not negative; below 2^31 with fp32 values.
        splits: how much goes where.
        group: every rank of it must call, also with 0 rows.

    Returns:
        rows [V, H], values and codes that came, ordered by source rank.
    """
    received: tuple[Tensor, Tensor, Tensor] = _SendRows.apply(  # type: ignore[no-untyped-call]
        rows, values, codes, splits, group
    )
    return received
