"""The adjugates' products on copies of the owner rows, by torch's grouped product.

For devices where a slice would make the host wait for its bounds; the shapes have to be those
that :func:`.torch_products.grouped_why_not` finds nothing against.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .interface import SegmentsLike


def owners_out(x: Tensor, narrow: Tensor, segments: SegmentsLike) -> Tensor:
    """q [M, Q]: every owner row of x [N, K] times its group's matrix of narrow [G, Q, K]."""
    return F.grouped_mm(x[segments.owner_index], narrow.mT, offs=group_end(segments))


def owners_in(q: Tensor, narrow: Tensor, segments: SegmentsLike) -> Tensor:
    """The transpose of :func:`owners_out`, [M, K]; :func:`add_to_owners` puts it in its place."""
    return F.grouped_mm(q, narrow, offs=group_end(segments))


def add_to_owners(x: Tensor, added: Tensor, segments: SegmentsLike) -> None:
    """x[owner rows] += added. They are distinct: nothing is added twice, whatever the order."""
    x.index_add_(0, segments.owner_index, added)


def owners_weights(q: Tensor, x: Tensor, segments: SegmentsLike, transposed: bool) -> Tensor:
    """Gradient of narrow, [G, Q, K]; [G, K, Q] if ``transposed``."""
    owners = x[segments.owner_index]
    left, right = (owners, q) if transposed else (q, owners)
    return F.grouped_mm(left.mT, right, offs=group_end(segments))


def group_end(segments: SegmentsLike) -> Tensor:
    """[G] int32, the ends of the groups' owner pairs among the M.

    Of stride 1, which torch demands or, on CUDA, reads through a bare pointer. A copy: to
    ``contiguous`` the end of a single group is that already, whatever its stride.
    """
    step = segments.experts_per_group
    return segments.owner_end[step - 1 :: step].clone(memory_format=torch.contiguous_format)
