"""Copy rows out and add rows back: the layer's two data movements, each other's gradient."""

import torch
from torch import Tensor


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """``x[index]`` as a fresh tensor [len(index), H], never a view of ``x``.

    Megatron's overlapped schedule frees the storage it hands to a stage; whatever an expert reads
    must therefore not alias it.
    """
    return x.index_select(0, index)


def add_rows(pieces: list[tuple[Tensor, Tensor]], num_rows: int, dtype: torch.dtype) -> Tensor:
    """Sum rows to their destinations: out[index[i]] += values[i], for all pieces in order.

    Args:
        pieces: (values [n, H], index [n] int64) pairs; destinations nobody names stay 0.
        num_rows: rows of the result.
        dtype: of the result. 16-bit values are summed in fp32.

    Returns:
        [num_rows, H] in ``dtype``.
    """
    values = pieces[0][0]
    wide = torch.float32 if values.dtype in (torch.bfloat16, torch.float16) else values.dtype
    out = values.new_zeros((num_rows, values.shape[1]), dtype=wide)
    for values, index in pieces:
        out.index_add_(0, index, values.to(wide))
    return out.to(dtype)
