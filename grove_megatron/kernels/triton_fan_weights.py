"""The gradients of both kinds of matrices, sums over rows of outer products: one launch.

    programs of a group:  | tiles of its narrow matrix | tiles of its experts' wide matrices |

A narrow matrix sums over the owner rows of all experts of its group: contiguous in q, one stretch
an expert in x. A group's programs are neighbours, since they read the same rows of x; its longest
ones go first. Matrices without rows are written too, as zeros.

N pairs, M owner pairs, L experts, G groups; K width of the rows, P and Q of the products.
"""

import triton
import triton.language as tl
from torch import Tensor

from .interface import SegmentsLike
from .triton_launch import launch, rows_bucket
from .triton_tiles import add_product, segment


def fan_weights(
    p: Tensor, q: Tensor | None, x: Tensor, segments: SegmentsLike, transposed: bool = False
) -> tuple[Tensor, Tensor | None]:
    """dwide[l] = sum of p[n]^T x[n] over expert l, dnarrow[g] = sum of q[m]^T x[owner row m].

    Args:
        p, q, x: [N, P], [M, Q] or None, [N, K], of one dtype.
        transposed: whether to return the transposes.

    Returns:
        dwide [L, P, K] or [L, K, P], dnarrow [G, Q, K] or [G, K, Q] or None; of p's dtype, summed
        in fp32.
    """
    num_rows, k = x.shape
    num_experts = segments.expert_end.numel()
    num_groups = num_experts // segments.experts_per_group
    widths = (p.shape[1], 0 if q is None else q.shape[1])

    def empty(count: int, width: int) -> Tensor:
        return p.new_empty((count, k, width) if transposed else (count, width, k))

    dwide = empty(num_experts, widths[0])
    dnarrow = None if q is None else empty(num_groups, widths[1])
    if not num_rows:
        return dwide.zero_(), None if dnarrow is None else dnarrow.zero_()

    def grid(tile: dict[str, int]) -> tuple[int]:
        wide, narrow = (triton.cdiv(width, tile["BLOCK_ROWS"]) for width in widths)
        stripes = num_groups * narrow + num_experts * wide
        return (stripes * triton.cdiv(k, tile["BLOCK_COLUMNS"]),)

    p = p.contiguous()
    launch(
        _fan_weights_kernel,
        grid,
        (widths[0], k, rows_bucket(num_rows, num_experts)),
        p.dtype,
        p_ptr=p,
        q_ptr=p if q is None else q.contiguous(),
        x_ptr=x.contiguous(),
        wide_ptr=dwide,
        narrow_ptr=dwide if dnarrow is None else dnarrow,
        expert_end_ptr=segments.expert_end,
        owner_end_ptr=segments.owner_end,
        K=k,
        P=widths[0],
        Q=widths[1],
        EXPERTS_PER_GROUP=segments.experts_per_group,
        TRANSPOSED=transposed,
    )
    return dwide, dnarrow


@triton.jit
def _fan_weights_kernel(
    p_ptr,
    q_ptr,
    x_ptr,
    wide_ptr,
    narrow_ptr,
    expert_end_ptr,
    owner_end_ptr,
    K: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    EXPERTS_PER_GROUP: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    COLUMNS: tl.constexpr = tl.cdiv(K, BLOCK_COLUMNS)
    WIDE: tl.constexpr = tl.cdiv(P, BLOCK_ROWS) * COLUMNS
    NARROW: tl.constexpr = tl.cdiv(Q, BLOCK_ROWS) * COLUMNS
    EVEN: tl.constexpr = P % BLOCK_ROWS == 0 and Q % BLOCK_ROWS == 0 and K % BLOCK_COLUMNS == 0
    PROGRAMS: tl.constexpr = NARROW + EXPERTS_PER_GROUP * WIDE
    group = tl.program_id(0) // PROGRAMS
    program = tl.program_id(0) % PROGRAMS

    # Everything that differs between the widths, so that one loop serves both.
    is_wide = program >= NARROW
    program = tl.where(is_wide, program - NARROW, program)
    block = program % tl.where(is_wide, WIDE, PROGRAMS)
    expert = group * EXPERTS_PER_GROUP + tl.where(is_wide, program // WIDE, 0)
    num_experts = tl.where(is_wide, 1, EXPERTS_PER_GROUP)
    width = tl.where(is_wide, P, Q)
    left_ptr = tl.where(is_wide, p_ptr, q_ptr)
    left_end_ptr = tl.where(is_wide, expert_end_ptr, owner_end_ptr)
    row = (block // COLUMNS) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (block % COLUMNS) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)

    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for source in range(expert, expert + num_experts):
        first, _ = segment(expert_end_ptr, source)
        left_first, left_end = segment(left_end_ptr, source)
        left_rows = left_ptr + left_first.to(tl.int64) * width
        x_rows = x_ptr + first.to(tl.int64) * K
        num_rows = left_end - left_first
        for done in range(0, num_rows, BLOCK_DEPTH):
            total = _add_outer_products(
                total, left_rows, x_rows, done, num_rows, row, width, column, K,
                EVEN, PRECISION, WIDEN, BLOCK_DEPTH,
            )  # fmt: skip
    out_ptr = tl.where(
        is_wide,
        wide_ptr + expert.to(tl.int64) * (P * K),
        narrow_ptr + group.to(tl.int64) * (Q * K),
    )
    if TRANSPOSED:
        out_ptrs = out_ptr + row[:, None] + column[None, :] * width
    else:
        out_ptrs = out_ptr + row[:, None] * K + column[None, :]
    mask = (row < width)[:, None] & (column < K)[None, :]
    tl.store(out_ptrs, total.to(wide_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _add_outer_products(
    total,
    left_ptr,
    right_ptr,
    done,
    num_rows,
    row,
    num_left,
    column,
    num_right,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """total + left[done:, row]^T @ right[done:, column], of the next BLOCK_DEPTH rows of both.

    Args:
        left_ptr, right_ptr: [num_rows, num_left], [num_rows, num_right], contiguous.
        EVEN: all of ``row`` and ``column`` lie inside, which saves their masks.
    """
    # A segment may hold so many rows that their elements are past 2^31.
    at = (done + tl.arange(0, BLOCK_DEPTH)).to(tl.int64)
    inside = at < num_rows
    left_mask = inside[None, :]
    right_mask = inside[:, None]
    if not EVEN:
        left_mask = left_mask & (row < num_left)[:, None]
        right_mask = right_mask & (column < num_right)[None, :]
    left_ptrs = left_ptr + row[:, None] + at[None, :] * num_left
    right_ptrs = right_ptr + at[:, None] * num_right + column[None, :]
    left = tl.load(left_ptrs, mask=left_mask, other=0.0)
    right = tl.load(right_ptrs, mask=right_mask, other=0.0)
    return add_product(total, left, right, PRECISION, WIDEN)
