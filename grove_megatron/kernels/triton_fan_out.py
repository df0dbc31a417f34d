"""Every row times its expert's matrix, every owner row also times its group's: one launch.

    programs of a row tile:  | columns of wide ............ | columns of narrow |
                               all rows, written to p         owner rows only, written to q

The columns of both widths lie side by side in the launch, so the rows that the experts have just
read are still in the cache for the adjugates. A row tile without owners skips the narrow columns.

N pairs, M owner pairs, L experts, G groups; K width of the rows, P and Q of the products.
"""

import triton
import triton.language as tl
from torch import Tensor

from .interface import SegmentsLike
from .triton_arguments import product_arguments
from .triton_launch import launch, rows_bucket
from .triton_tiles import (
    add_rows_by_matrix,
    find_row_tile,
    max_row_tiles,
    neighbours_share,
    segment,
)


def fan_out(
    x: Tensor, wide: Tensor, narrow: Tensor | None, segments: SegmentsLike
) -> tuple[Tensor, Tensor | None]:
    """p[n] = wide[expert of n] @ x[n], q[m] = narrow[group of m] @ x[owner row m].

    Args:
        x: [N, K].
        wide, narrow: [L, P, K], [G, Q, K], of x's dtype; any strides.

    Returns:
        p [N, P], q [M, Q] or None; x's dtype, summed in fp32.
    """
    x = x.contiguous()
    num_rows, num_experts = x.shape[0], wide.shape[0]
    widths = (wide.shape[1], 0 if narrow is None else narrow.shape[1])
    p = x.new_empty((num_rows, widths[0]))
    q = None if narrow is None else x.new_empty((segments.num_owner_pairs, widths[1]))
    if not num_rows:
        return p, q

    def grid(tile: dict[str, int]) -> tuple[int]:
        columns = sum(triton.cdiv(width, tile["BLOCK_COLUMNS"]) for width in widths)
        return (max_row_tiles(num_rows, num_experts, tile["BLOCK_ROWS"]) * columns,)

    launch(
        _fan_out_kernel,
        grid,
        (rows_bucket(num_rows, num_experts), widths[0], x.shape[1]),
        x.dtype,
        x_ptr=x,
        p_ptr=p,
        q_ptr=p if q is None else q,
        **product_arguments(wide, narrow, segments),
    )
    return p, q


@triton.jit
def _fan_out_kernel(
    x_ptr,
    wide_ptr,
    narrow_ptr,
    p_ptr,
    q_ptr,
    expert_end_ptr,
    owner_end_ptr,
    wide_step,
    wide_pitch,
    narrow_step,
    narrow_pitch,
    K: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    EXPERT_LANES: tl.constexpr,
    EXPERTS_PER_GROUP: tl.constexpr,
    K_CONTIGUOUS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    WIDE: tl.constexpr = tl.cdiv(P, BLOCK_COLUMNS)
    COLUMNS: tl.constexpr = WIDE + tl.cdiv(Q, BLOCK_COLUMNS)
    EVEN: tl.constexpr = K % BLOCK_DEPTH == 0 and P % BLOCK_COLUMNS == 0 and Q % BLOCK_COLUMNS == 0
    tile, block = neighbours_share(tl.program_id(0), COLUMNS)
    expert, before = find_row_tile(expert_end_ptr, tile, NUM_EXPERTS, EXPERT_LANES, BLOCK_ROWS)
    if expert >= NUM_EXPERTS:
        return
    first, end = segment(expert_end_ptr, expert)
    x_ptr += (first + before).to(tl.int64) * K

    # Everything that differs between the widths, so that one loop serves both.
    is_wide = block < WIDE
    owner_first, owner_end = segment(owner_end_ptr, expert)
    out_first = tl.where(is_wide, first, owner_first) + before
    num_rows = tl.where(is_wide, end, owner_end) - out_first
    if num_rows <= 0:
        return
    group = expert // EXPERTS_PER_GROUP
    width = tl.where(is_wide, P, Q)
    pitch = tl.where(is_wide, wide_pitch, narrow_pitch)
    matrix_ptr = tl.where(
        is_wide,
        wide_ptr + expert.to(tl.int64) * wide_step,
        narrow_ptr + group.to(tl.int64) * narrow_step,
    )
    out_ptr = tl.where(is_wide, p_ptr, q_ptr) + out_first.to(tl.int64) * width
    row = tl.arange(0, BLOCK_ROWS)
    column = tl.where(is_wide, block, block - WIDE) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)

    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for done in range(0, K, BLOCK_DEPTH):
        at = done + tl.arange(0, BLOCK_DEPTH)
        total = add_rows_by_matrix(
            total,
            x_ptr,
            row,
            num_rows,
            matrix_ptr,
            pitch,
            column,
            width,
            at,
            K,
            EVEN,
            K_CONTIGUOUS,
            PRECISION,
            WIDEN,
        )
    tl.store(
        out_ptr + row[:, None] * width + column[None, :],
        total.to(p_ptr.dtype.element_ty),
        mask=(row < num_rows)[:, None] & (column < width)[None, :],
    )
