"""Copy rows out and sum bags of rows: both move bytes and do little else.

A program works on whole stretches of a row, so that its loads are 16 bytes a thread and next to
each other, and has several rows under way at once, so that memory is never waited for one by one.

V rows received, N pairs, H width.
"""

import triton
import triton.language as tl
from torch import Tensor

_STRETCH = 2048
"""Elements of a row that a program takes at most."""
_ROWS_AT_ONCE = 4
"""Rows of a bag that are loaded together."""


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """``x[index]``: x [V, H], index [N] int64 -> [N, H]."""
    num_rows, width = index.numel(), x.shape[1]
    out = x.new_empty((num_rows, width))
    if not out.numel():
        return out
    stretch = min(triton.next_power_of_2(width), _STRETCH)
    rows = max(1, 4 * _STRETCH // stretch)
    _take_rows_kernel[(triton.cdiv(num_rows, rows) * triton.cdiv(width, stretch),)](
        x.contiguous(),
        index.contiguous(),
        out,
        num_rows,
        WIDTH=width,
        BLOCK_ROWS=rows,
        BLOCK_COLUMNS=stretch,
        num_warps=8,
    )
    return out


@triton.jit(do_not_specialize=["num_rows"])
def _take_rows_kernel(
    x_ptr,
    index_ptr,
    out_ptr,
    num_rows,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    STRETCHES: tl.constexpr = tl.cdiv(WIDTH, BLOCK_COLUMNS)
    program = tl.program_id(0)
    row = (program // STRETCHES).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (program % STRETCHES) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = row < num_rows
    source = tl.load(index_ptr + row, mask=inside, other=0)
    mask = inside[:, None] & (column < WIDTH)[None, :]
    taken = tl.load(x_ptr + source[:, None] * WIDTH + column[None, :], mask=mask)
    tl.store(out_ptr + row[:, None] * WIDTH + column[None, :], taken, mask=mask)


def sum_rows(y: Tensor, bag_start: Tensor, bag_index: Tensor) -> Tensor:
    """out[v] = sum of y[i] for i in bag v, in fp32 and in an order that is always the same.

    Args:
        y: [N, H].
        bag_start: [V + 1] int64; bag v is ``bag_index[bag_start[v]:bag_start[v + 1]]``.
        bag_index: int64 rows of y.

    Returns:
        [V, H] in y's dtype; 0 for an empty bag.
    """
    num_bags, width = bag_start.numel() - 1, y.shape[1]
    out = y.new_empty((num_bags, width))
    if not out.numel():
        return out
    stretch = min(triton.next_power_of_2(width), _STRETCH)
    _sum_rows_kernel[(num_bags * triton.cdiv(width, stretch),)](
        y.contiguous(),
        bag_start.contiguous(),
        bag_index.contiguous(),
        out,
        WIDTH=width,
        AT_ONCE=_ROWS_AT_ONCE,
        BLOCK_COLUMNS=stretch,
        # 16 bytes a thread cover a row, so that no sum crosses threads.
        num_warps=min(8, max(1, stretch * y.element_size() // 512)),
    )
    return out


@triton.jit
def _sum_rows_kernel(
    y_ptr,
    bag_start_ptr,
    bag_index_ptr,
    out_ptr,
    WIDTH: tl.constexpr,
    AT_ONCE: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    STRETCHES: tl.constexpr = tl.cdiv(WIDTH, BLOCK_COLUMNS)
    bag = tl.program_id(0) // STRETCHES
    column = (tl.program_id(0) % STRETCHES) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    start = tl.load(bag_start_ptr + bag)
    end = tl.load(bag_start_ptr + bag + 1)
    total = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    for done in range(start, end, AT_ONCE):
        member = done + tl.arange(0, AT_ONCE)
        row = tl.load(bag_index_ptr + member, mask=member < end, other=0)
        mask = (member < end)[:, None] & (column < WIDTH)[None, :]
        rows = tl.load(y_ptr + row[:, None] * WIDTH + column[None, :], mask=mask, other=0.0)
        total += tl.sum(rows.to(tl.float32), 0)
    out_ptrs = out_ptr + bag.to(tl.int64) * WIDTH + column
    tl.store(out_ptrs, total.to(out_ptr.dtype.element_ty), mask=column < WIDTH)
