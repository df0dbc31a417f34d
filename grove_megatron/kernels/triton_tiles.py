"""How the programs of a launch find their rows: every expert's segment is cut into row tiles.

    segment of expert 0      expert 1 (empty)   expert 2
    |----tile 0---|--t1--|                      |----tile 2---|-t3-|

The host knows N and L, not the sizes of the segments, and must not wait for them: it launches as
many tiles as there can be, every program looks its own up in ``expert_end``, and those past the
last tile return at once.

N = (row, expert) pairs, L = local experts.
"""

import triton
import triton.language as tl


def max_row_tiles(num_pairs: int, num_experts: int, block: int) -> int:
    """The most row tiles that ``num_pairs`` rows in ``num_experts`` segments can make.

    Full tiles are at most N // block; each segment with rows ends in at most one partial tile.
    """
    return num_pairs // block + min(num_pairs, num_experts)


def expert_lanes(num_experts: int) -> int:
    """Lanes for :func:`find_row_tile`."""
    return triton.next_power_of_2(num_experts)


@triton.jit
def segment(end_ptr, index):
    """First and end of segment ``index``, of cumulative ends [L] int32."""
    first = tl.load(end_ptr + index - 1, mask=index > 0, other=0)
    return first, tl.load(end_ptr + index)


@triton.jit
def find_row_tile(
    end_ptr, tile, NUM_EXPERTS: tl.constexpr, EXPERT_LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr
):
    """The expert of row tile ``tile``, and how many rows of its segment lie before the tile.

    One load and one scan of all L ends: a loop over the experts would wait for memory L times.
    Past the last tile the expert is at least ``NUM_EXPERTS``.

    Args:
        EXPERT_LANES: power of two, at least ``NUM_EXPERTS``.
    """
    lane = tl.arange(0, EXPERT_LANES)
    real = lane < NUM_EXPERTS
    end = tl.load(end_ptr + lane, mask=real, other=0)
    first = tl.load(end_ptr + lane - 1, mask=real & (lane > 0), other=0)
    tile_end = tl.cumsum(tl.cdiv(end - first, BLOCK_ROWS), 0)
    before = tile_end <= tile
    expert = tl.sum(before.to(tl.int32), 0)
    return expert, (tile - tl.max(tl.where(before, tile_end, 0), 0)) * BLOCK_ROWS


@triton.jit
def neighbours_share(program, COLUMNS: tl.constexpr):
    """Row tile and column of a program, such that programs that run together share what they read.

    Eight row tiles go through all columns together: they share a column's matrix, and the rows of
    all eight stay in the cache.
    """
    row_tiles = tl.num_programs(0) // COLUMNS
    return tl.swizzle2d(program // COLUMNS, program % COLUMNS, row_tiles, COLUMNS, 8)


@triton.jit
def add_product(total, left, right, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """total + left @ right, summed in fp32.

    ``WIDEN`` is for the interpreter, which takes the bits of bf16 for integers.
    """
    if WIDEN:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def add_rows_by_matrix(
    total,
    rows_ptr,
    row,
    num_rows,
    matrix_ptr,
    pitch,
    column,
    num_columns,
    at,
    width,
    EVEN: tl.constexpr,
    ALONG_SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One step of a sum: total + rows[row, at] @ matrix[at, column].

    Args:
        total: [ROWS, COLUMNS] fp32.
        rows_ptr: contiguous rows of ``width`` elements; from row ``num_rows`` on they count as 0.
        matrix_ptr, pitch: [width, num_columns], elements contiguous along the sum if
            ``ALONG_SUM``, else along the columns; ``pitch`` is the other stride.
        row, column, at: [ROWS], [COLUMNS], [DEPTH] int32, the indices of this step.
        EVEN: all of ``column`` and ``at`` lie inside, which saves their masks.
    """
    row_mask = (row < num_rows)[:, None]
    if ALONG_SUM:
        matrix_ptrs = matrix_ptr + at[:, None] + column[None, :] * pitch
    else:
        matrix_ptrs = matrix_ptr + at[:, None] * pitch + column[None, :]
    if EVEN:
        matrix = tl.load(matrix_ptrs)
    else:
        inside = at < width
        row_mask = row_mask & inside[None, :]
        matrix_mask = inside[:, None] & (column < num_columns)[None, :]
        matrix = tl.load(matrix_ptrs, mask=matrix_mask, other=0.0)
    rows_ptrs = rows_ptr + row[:, None] * width + at[None, :]
    rows = tl.load(rows_ptrs, mask=row_mask, other=0.0)
    return add_product(total, rows, matrix, PRECISION, WIDEN)
