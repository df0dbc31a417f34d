"""Products with concatenated matrices [E_i | A_j], to be measured against the others.

    owner rows of expert i    one product with [E_i | A_j], A_j of its group
    its other rows            a narrower product with E_i

The concatenation copies every matrix in every call, and results of the two kinds of rows have to
be brought together. Shapes are those of :class:`..kernels.interface.Kernels`.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels import TORCH, SegmentsLike


def fan_out(
    x: Tensor, wide: Tensor, narrow: Tensor | None, segments: SegmentsLike
) -> tuple[Tensor, Tensor | None]:
    if narrow is None:
        return TORCH.fan_out(x, wide, None, segments)
    both, width = _side_by_side(wide, narrow, segments), wide.shape[1]
    p = x.new_empty((segments.num_pairs, width))
    q = x.new_empty((segments.num_owner_pairs, narrow.shape[1]))
    if _in_slices(x):
        for expert, rows, owners, others in _slices(segments):
            pq = x[rows] @ both[expert].T
            p[rows], q[owners] = pq[:, :width], pq[:, width:]
            torch.mm(x[others], wide[expert].T, out=p[others])
        return p, q
    owned, other, other_end = _indices(segments)
    pq = F.grouped_mm(x[owned], both.mT, offs=segments.owner_end)
    p[owned] = pq[:, :width]
    p[other] = F.grouped_mm(x[other], wide.mT, offs=other_end)
    return p, pq[:, width:].contiguous()


def fan_in(
    p: Tensor, q: Tensor | None, wide: Tensor, narrow: Tensor | None, segments: SegmentsLike
) -> Tensor:
    if q is None or narrow is None:
        return TORCH.fan_in(p, None, wide, None, segments)
    both = _side_by_side(wide, narrow, segments)
    x = p.new_empty((segments.num_pairs, wide.shape[2]))
    if _in_slices(p):
        for expert, rows, owners, others in _slices(segments):
            torch.mm(torch.cat([p[rows], q[owners]], 1), both[expert], out=x[rows])
            torch.mm(p[others], wide[expert], out=x[others])
        return x
    owned, other, other_end = _indices(segments)
    pq = torch.cat([p[owned], q], 1)
    x[owned] = F.grouped_mm(pq, both, offs=segments.owner_end)
    x[other] = F.grouped_mm(p[other], wide, offs=other_end)
    return x


def fan_weights(
    p: Tensor, q: Tensor | None, x: Tensor, segments: SegmentsLike, transposed: bool
) -> tuple[Tensor, Tensor | None]:
    if q is None:
        return TORCH.fan_weights(p, None, x, segments, transposed)
    # Of every expert [P + Q, K] from its owner rows, and [P, K] from the others.
    experts, width = segments.expert_end.numel(), p.shape[1]
    if _in_slices(x):
        both = x.new_empty((experts, width + q.shape[1], x.shape[1]))
        for expert, rows, owners, others in _slices(segments):
            pq = torch.cat([p[rows], q[owners]], 1)
            torch.mm(pq.T, x[rows], out=both[expert])
            both[expert, :width].addmm_(p[others].T, x[others])
    else:
        owned, other, other_end = _indices(segments)
        pq = torch.cat([p[owned], q], 1)
        both = F.grouped_mm(pq.T, x[owned], offs=segments.owner_end)
        both[:, :width] += F.grouped_mm(p[other].T, x[other], offs=other_end)
    per_expert = both[:, width:]
    dnarrow = per_expert.reshape(-1, segments.experts_per_group, *per_expert.shape[1:]).sum(1)
    dwide = both[:, :width]
    if transposed:
        dwide, dnarrow = dwide.mT, dnarrow.mT
    return dwide.contiguous(), dnarrow.contiguous()


def _in_slices(x: Tensor) -> bool:
    """Slices are cheap on a CPU; elsewhere they would make the host wait for their bounds."""
    return x.is_cpu


def _side_by_side(wide: Tensor, narrow: Tensor, segments: SegmentsLike) -> Tensor:
    """[L, P + Q, K], every expert's matrix above its group's."""
    return torch.cat([wide, narrow.repeat_interleave(segments.experts_per_group, 0)], 1)


def _slices(segments: SegmentsLike) -> Iterator[tuple[int, slice, slice, slice]]:
    """(expert, its owner rows among the N, the same among the M, its other rows among the N)."""
    ends = ([0, *end.tolist()] for end in (segments.expert_end, segments.owner_end))
    experts, owners = (pairwise(end) for end in ends)
    for expert, ((first, end), (m, m_end)) in enumerate(zip(experts, owners, strict=True)):
        middle = first + m_end - m
        yield expert, slice(first, middle), slice(m, m_end), slice(middle, end)


def _indices(segments: SegmentsLike) -> tuple[Tensor, Tensor, Tensor]:
    """Owner rows [M] and other rows [N - M] among the N, and the end of every expert's others."""
    owned, count = segments.owner_index, segments.num_pairs - segments.num_owner_pairs
    is_other = torch.ones(segments.num_pairs, dtype=torch.bool, device=owned.device)
    is_other[owned] = False
    other = torch.nonzero_static(is_other, size=count)[:, 0]
    return owned, other, segments.expert_end - segments.owner_end
