"""The matrix products of a layer's experts alone: the part of its time that nothing can avoid."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor


def products(rows: Sequence[int], hidden: int, width: int, like: Tensor) -> Callable[[], None]:
    """The six products of every expert, forward and backward, one ``torch.mm`` each.

    Arguments are random and results have their place beforehand: nothing is copied or allocated.

    Args:
        rows: of every expert.
        hidden, width: H and F.
        like: a tensor of the dtype and device.

    Returns:
        what computes them all, an expert at a time as a layer does, product by product.
    """
    ends = [0, *accumulate(rows)]
    slices = [slice(a, b) for a, b in pairwise(ends)]
    x, y = (_random(like, ends[-1], hidden) for _ in range(2))
    h, a = _random(like, ends[-1], 2 * width), _random(like, ends[-1], width)
    up, down = _random(like, len(rows), 2 * width, hidden), _random(like, len(rows), hidden, width)
    into_x, into_h, into_a, into_up, into_down = map(torch.empty_like, (x, h, a, up, down))
    calls = [
        *((x[s], up[i].T, into_h[s]) for i, s in enumerate(slices)),
        *((a[s], down[i].T, into_x[s]) for i, s in enumerate(slices)),
        *((y[s].T, a[s], into_down[i]) for i, s in enumerate(slices)),
        *((y[s], down[i], into_a[s]) for i, s in enumerate(slices)),
        *((h[s].T, x[s], into_up[i]) for i, s in enumerate(slices)),
        *((h[s], up[i], into_x[s]) for i, s in enumerate(slices)),
    ]
    return partial(_multiply, calls)


def _multiply(calls: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
    for left, right, out in calls:
        torch.mm(left, right, out=out)


def _random(like: Tensor, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=like.dtype, device=like.device)
