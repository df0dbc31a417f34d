"""SwiGLU times a weight per row, and its gradient, each in one pass over memory.

    h = [a | b],   out = silu(a) * b * weight,   silu(a) = a * sigmoid(a)

n rows; f width of a, of b and of the result. Everything is computed in fp32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 256
"""16 bytes a thread of a warp, in 16 bit; expert widths are mostly multiples of it."""
_ELEMENTS = 2048
"""Elements of the result that a program works on at a time."""


def _block(width: int) -> tuple[int, int]:
    """Rows and columns that a program works on at a time."""
    columns = min(triton.next_power_of_2(width), _COLUMNS)
    return _ELEMENTS // columns, columns


def weighted_swiglu(h: Tensor, weight: Tensor) -> Tensor:
    """h [n, 2f], weight [n] -> silu(h[:, :f]) * h[:, f:] * weight[:, None], [n, f] in h's dtype."""
    num_rows, width = h.shape[0], h.shape[1] // 2
    out = h.new_empty((num_rows, width))
    if out.numel():
        rows, columns = _block(width)
        _swiglu_kernel[(triton.cdiv(num_rows, rows) * triton.cdiv(width, columns),)](
            h.contiguous(),
            weight.contiguous(),
            out,
            num_rows,
            WIDTH=width,
            BLOCK_ROWS=rows,
            BLOCK_COLUMNS=columns,
        )
    return out


def weighted_swiglu_grad(grad: Tensor, h: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """grad [n, f], h [n, 2f], weight [n] -> dh [n, 2f] in h's dtype, dweight [n] in weight's."""
    h, weight = h.contiguous(), weight.contiguous()
    num_rows, width = h.shape[0], h.shape[1] // 2
    dh, dweight = torch.empty_like(h), torch.empty_like(weight)
    if dh.numel():
        rows, columns = _block(width)
        # A program goes through its rows from end to end: dweight is a sum along them.
        _swiglu_grad_kernel[(triton.cdiv(num_rows, rows),)](
            grad.contiguous(),
            h,
            weight,
            dh,
            dweight,
            num_rows,
            WIDTH=width,
            BLOCK_ROWS=rows,
            BLOCK_COLUMNS=columns,
        )
    return dh, dweight


@triton.jit(do_not_specialize=["num_rows"])
def _swiglu_kernel(
    h_ptr,
    weight_ptr,
    out_ptr,
    num_rows,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    COLUMN_BLOCKS: tl.constexpr = tl.cdiv(WIDTH, BLOCK_COLUMNS)
    program = tl.program_id(0)
    row = (program // COLUMN_BLOCKS).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (program % COLUMN_BLOCKS) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = (row < num_rows)[:, None] & (column < WIDTH)[None, :]
    weight = tl.load(weight_ptr + row, mask=row < num_rows, other=0.0).to(tl.float32)
    gate_ptrs = h_ptr + row[:, None] * (2 * WIDTH) + column[None, :]
    gate = tl.load(gate_ptrs, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptrs + WIDTH, mask=mask, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up * weight[:, None]
    out_ptrs = out_ptr + row[:, None] * WIDTH + column[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def _swiglu_grad_kernel(
    grad_ptr,
    h_ptr,
    weight_ptr,
    dh_ptr,
    dweight_ptr,
    num_rows,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = row < num_rows
    weight = tl.load(weight_ptr + row, mask=inside, other=0.0).to(tl.float32)[:, None]
    dweight = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for done in range(0, WIDTH, BLOCK_COLUMNS):
        column = done + tl.arange(0, BLOCK_COLUMNS)
        mask = inside[:, None] & (column < WIDTH)[None, :]
        gate_at = row[:, None] * (2 * WIDTH) + column[None, :]
        grad_ptrs = grad_ptr + row[:, None] * WIDTH + column[None, :]
        grad = tl.load(grad_ptrs, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(h_ptr + gate_at, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(h_ptr + gate_at + WIDTH, mask=mask, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        dweight += grad * silu * up
        dout = grad * weight
        dgate = dout * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
        tl.store(dh_ptr + gate_at, dgate.to(dh_ptr.dtype.element_ty), mask=mask)
        dup = dout * silu
        tl.store(dh_ptr + gate_at + WIDTH, dup.to(dh_ptr.dtype.element_ty), mask=mask)
    total = tl.sum(dweight, 1)
    tl.store(dweight_ptr + row, total.to(dweight_ptr.dtype.element_ty), mask=inside)
