"""Products of both widths back to the rows, summed: one launch, one accumulator.

    a program's sum:  | steps over P, every row | steps over Q, owner rows |

The steps of both widths are one loop, so that the loads of the adjugate's part are already under
way while the expert's part is multiplied; two loops would drain and refill in between. A tile
without owner rows ends its loop before.

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


def fan_in(
    p: Tensor, q: Tensor | None, wide: Tensor, narrow: Tensor | None, segments: SegmentsLike
) -> Tensor:
    """x[n] = p[n] @ wide[expert of n], plus q[m] @ narrow[group of m] where n is owner row m.

    Args:
        p, q: [N, P], [M, Q].
        wide, narrow: [L, P, K], [G, Q, K], of p's dtype; any strides.

    Returns:
        x [N, K] of p's dtype, summed in fp32.
    """
    assert (q is None) == (narrow is None)
    p = p.contiguous()
    (num_rows, depth), (num_experts, _, k) = p.shape, wide.shape
    x = p.new_empty((num_rows, k))
    if not num_rows:
        return x

    def grid(tile: dict[str, int]) -> tuple[int]:
        tiles = max_row_tiles(num_rows, num_experts, tile["BLOCK_ROWS"])
        return (tiles * triton.cdiv(k, tile["BLOCK_COLUMNS"]),)

    launch(
        _fan_in_kernel,
        grid,
        (rows_bucket(num_rows, num_experts), k, depth),
        p.dtype,
        x_ptr=x,
        p_ptr=p,
        q_ptr=p if q is None else q.contiguous(),
        **product_arguments(wide, narrow, segments),
    )
    return x


@triton.jit
def _fan_in_kernel(
    x_ptr,
    p_ptr,
    q_ptr,
    wide_ptr,
    narrow_ptr,
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
    WIDE: tl.constexpr = tl.cdiv(P, BLOCK_DEPTH)
    NARROW: tl.constexpr = tl.cdiv(Q, BLOCK_DEPTH)
    EVEN: tl.constexpr = P % BLOCK_DEPTH == 0 and Q % BLOCK_DEPTH == 0 and K % BLOCK_COLUMNS == 0
    tile, block = neighbours_share(tl.program_id(0), tl.cdiv(K, BLOCK_COLUMNS))
    expert, before = find_row_tile(expert_end_ptr, tile, NUM_EXPERTS, EXPERT_LANES, BLOCK_ROWS)
    if expert >= NUM_EXPERTS:
        return
    first, end = segment(expert_end_ptr, expert)
    owner_first, owner_end = segment(owner_end_ptr, expert)
    first += before
    owner_first += before
    p_ptr += first.to(tl.int64) * P
    q_ptr += owner_first.to(tl.int64) * Q
    x_ptr += first.to(tl.int64) * K
    wide_ptr += expert.to(tl.int64) * wide_step
    narrow_ptr += (expert // EXPERTS_PER_GROUP).to(tl.int64) * narrow_step
    row = tl.arange(0, BLOCK_ROWS)
    column = block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)

    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for step in range(tl.where(owner_first < owner_end, WIDE + NARROW, WIDE)):
        is_wide = step < WIDE
        at = tl.where(is_wide, step, step - WIDE) * BLOCK_DEPTH + tl.arange(0, BLOCK_DEPTH)
        total = add_rows_by_matrix(
            total,
            tl.where(is_wide, p_ptr, q_ptr),
            row,
            tl.where(is_wide, end - first, owner_end - owner_first),
            tl.where(is_wide, wide_ptr, narrow_ptr),
            tl.where(is_wide, wide_pitch, narrow_pitch),
            column,
            K,
            at,
            tl.where(is_wide, P, Q),
            EVEN,
            not K_CONTIGUOUS,
            PRECISION,
            WIDEN,
        )
    tl.store(
        x_ptr + row[:, None] * K + column[None, :],
        total.to(x_ptr.dtype.element_ty),
        mask=(row < end - first)[:, None] & (column < K)[None, :],
    )
