"""What an implementation of the layer's arithmetic provides."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class SegmentsLike(Protocol):
    """Where the rows of every expert lie, see :class:`.expand_plan.Segments`."""

    @property
    def expert_end(self) -> Tensor: ...
    @property
    def owner_end(self) -> Tensor: ...
    @property
    def owner_index(self) -> Tensor: ...
    @property
    def experts_per_group(self) -> int: ...
    @property
    def num_pairs(self) -> int: ...
    @property
    def num_owner_pairs(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Functions on tensors, none differentiable. N pairs by expert, owners first; M owner pairs.

    Attributes:
        name: as logged.
        take_rows: (x [V, H], index [N] int64) -> x[index].
        sum_rows: (y [N, H], bag_start [V + 1], bag_index [N]) -> [V, H] in y's dtype; row v is the
            sum, in fp32 or wider, of the rows of its bag; 0 for an empty one.
        weighted_swiglu: (h [n, 2f], weight [n]) -> silu(h[:, :f]) * h[:, f:] * weight, [n, f] in
            h's dtype, computed in fp32 or wider.
        weighted_swiglu_grad: (grad [n, f], h, weight) -> (dh [n, 2f], dweight [n]).
        fan_out: (x [N, K], wide [L, P, K], narrow [G, Q, K] or None, segments) ->
            (p [N, P], q [M, Q] or None): every row times its expert's matrix, every owner row
            also times its group's.
        fan_in: (p [N, P], q [M, Q] or None, wide, narrow or None, segments) -> x [N, K]: the
            transpose of fan_out.
        fan_weights: (p, q or None, x [N, K], segments, transposed) -> (dwide [L, P, K], dnarrow
            [G, Q, K] or None), sums over rows of outer products; [L, K, P] and [G, K, Q] if
            ``transposed``. A matrix without rows gets 0.
    """

    name: str
    take_rows: Callable[[Tensor, Tensor], Tensor]
    sum_rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    weighted_swiglu: Callable[[Tensor, Tensor], Tensor]
    weighted_swiglu_grad: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    fan_out: Callable[[Tensor, Tensor, Tensor | None, SegmentsLike], tuple[Tensor, Tensor | None]]
    fan_in: Callable[[Tensor, Tensor | None, Tensor, Tensor | None, SegmentsLike], Tensor]
    fan_weights: Callable[
        [Tensor, Tensor | None, Tensor, SegmentsLike, bool], tuple[Tensor, Tensor | None]
    ]
