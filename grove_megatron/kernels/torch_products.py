"""Products of many rows with many matrices, of two widths; see :class:`.interface.Kernels`.

The wide products go to torch's grouped product where it takes the shapes, the narrow ones on a
CPU straight into slices of the wide ones' rows. One matrix at a time otherwise.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from .interface import SegmentsLike
from .torch_owners import add_to_owners, owners_in, owners_out, owners_weights

_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def grouped_why_not(dtype: torch.dtype, *widths: int) -> str | None:
    """Why torch's grouped product cannot run, or None: rows of a multiple of 16 bytes."""
    if dtype not in _GROUPED_DTYPES:
        return f"dtype ({dtype}) is not one of {', '.join(map(str, _GROUPED_DTYPES))}"
    multiple = 16 // dtype.itemsize
    for width in widths:
        if width % multiple:
            return f"width ({width}) is not a multiple of {multiple}, 16 bytes of {dtype}"
    return None


def fan_out(
    x: Tensor, wide: Tensor, narrow: Tensor | None, segments: SegmentsLike
) -> tuple[Tensor, Tensor | None]:
    p = _wide_product(x, wide.mT, segments)
    if narrow is None:
        return p, None
    if _on_device(x, narrow):
        return p, owners_out(x, narrow, segments)
    q = x.new_empty((segments.num_owner_pairs, narrow.shape[1]))
    for group, rows, owners in owner_slices(segments):
        torch.mm(x[rows], narrow[group].T, out=q[owners])
    return p, q


def fan_in(
    p: Tensor, q: Tensor | None, wide: Tensor, narrow: Tensor | None, segments: SegmentsLike
) -> Tensor:
    x = _wide_product(p, wide, segments)
    if q is None or narrow is None:
        return x
    if _on_device(q, narrow):
        add_to_owners(x, owners_in(q, narrow, segments), segments)
    else:
        for group, rows, owners in owner_slices(segments):
            x[rows].addmm_(q[owners], narrow[group])
    return x


def fan_weights(
    p: Tensor, q: Tensor | None, x: Tensor, segments: SegmentsLike, transposed: bool
) -> tuple[Tensor, Tensor | None]:
    dwide = _wide_outer(*((x, p) if transposed else (p, x)), segments)
    if q is None:
        return dwide, None
    if _on_device(q, x):
        return dwide, owners_weights(q, x, segments, transposed)
    groups = segments.owner_end.numel() // segments.experts_per_group
    shape = (x.shape[1], q.shape[1]) if transposed else (q.shape[1], x.shape[1])
    dnarrow = q.new_zeros((groups, *shape), dtype=torch.promote_types(q.dtype, torch.float32))
    for group, rows, owners in owner_slices(segments):
        left, right = (x[rows], q[owners]) if transposed else (q[owners], x[rows])
        _add_outer(dnarrow[group], left, right)
    return dwide, dnarrow.to(q.dtype)


def _on_device(x: Tensor, y: Tensor) -> bool:
    """Slices are cheap on a CPU; elsewhere they would make the host wait for their bounds."""
    return not x.is_cpu and grouped_why_not(x.dtype, x.shape[-1], *y.shape[1:]) is None


def _add_outer(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out += left.T @ right, where out may be of a wider dtype than the factors."""
    if out.dtype == left.dtype:
        out.addmm_(left.T, right)
    else:
        out.add_(torch.mm(left.T, right))


def _wide_product(x: Tensor, matrices: Tensor, segments: SegmentsLike) -> Tensor:
    """x [N, A] times matrices [L, A, B], every row with its expert's."""
    if grouped_why_not(x.dtype, *matrices.shape[1:]) is None:
        return F.grouped_mm(x, matrices, offs=segments.expert_end)
    out = x.new_empty((x.shape[0], matrices.shape[2]))
    for expert, rows in enumerate(_slices(segments.expert_end)):
        torch.mm(x[rows], matrices[expert], out=out[rows])
    return out


def _wide_outer(left: Tensor, right: Tensor, segments: SegmentsLike) -> Tensor:
    """[N, A] and [N, B] to [L, A, B], every expert's rows summed."""
    if grouped_why_not(left.dtype, left.shape[1], right.shape[1]) is None:
        return F.grouped_mm(left.T, right, offs=segments.expert_end)
    experts = segments.expert_end.numel()
    out = left.new_zeros((experts, left.shape[1], right.shape[1]))
    for expert, rows in enumerate(_slices(segments.expert_end)):
        torch.mm(left[rows].T, right[rows], out=out[expert])
    return out


def _slices(end: Tensor) -> list[slice]:
    ends = [0, *end.tolist()]
    return [slice(a, b) for a, b in pairwise(ends)]


def owner_slices(segments: SegmentsLike) -> Iterator[tuple[int, slice, slice]]:
    """(group, its owner rows among the N, the same among the M), as few slices as they lie in.

    The owners of neighbouring experts are joined where no other row lies between: with two
    experts a group, always.
    """
    experts, owners = _slices(segments.expert_end), _slices(segments.owner_end)
    size = segments.experts_per_group
    for group in range(len(experts) // size):
        runs: list[tuple[int, int, int]] = []
        for expert in range(group * size, (group + 1) * size):
            row, owner = experts[expert].start, owners[expert].start
            length = owners[expert].stop - owner
            if runs and sum(runs[-1][::2]) == row:
                before = runs.pop()
                runs.append((*before[:2], before[2] + length))
            elif length:
                runs.append((row, owner, length))
        for row, owner, length in runs:
            yield group, slice(row, row + length), slice(owner, owner + length)
