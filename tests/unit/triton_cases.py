"""What the products of experts and adjugates are, as loops in fp64, and segments to try them on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def unit_in_the_last_place(dtype: torch.dtype) -> float:
    """The relative error of a result that was rounded to ``dtype``.

    A GPU rounds to nearest and errs by half of it; the interpreter cuts the bits of bf16 off.
    """
    return torch.finfo(dtype).eps


@dataclass(frozen=True, kw_only=True)
class Case:
    """Segments, and what the kernels are told of them.

    Attributes:
        pairs, owners: of every expert.
    """

    experts_per_group: int
    pairs: tuple[int, ...]
    owners: tuple[int, ...]

    @property
    def expert_end(self) -> Tensor:
        return torch.tensor(self.pairs).cumsum(0).int()

    @property
    def owner_end(self) -> Tensor:
        return torch.tensor(self.owners).cumsum(0).int()

    @property
    def owner_index(self) -> Tensor:
        return torch.tensor([n for n, _, m in self.rows() if m is not None], dtype=torch.int64)

    @property
    def num_pairs(self) -> int:
        return sum(self.pairs)

    @property
    def num_owner_pairs(self) -> int:
        return sum(self.owners)

    @property
    def num_groups(self) -> int:
        return len(self.pairs) // self.experts_per_group

    def rows(self) -> list[tuple[int, int, int | None]]:
        """(row among the N, its expert, row among the M if it is an owner)."""
        found: list[tuple[int, int, int | None]] = []
        owner = 0
        for expert, (pairs, owners) in enumerate(zip(self.pairs, self.owners, strict=True)):
            for i in range(pairs):
                found.append((len(found), expert, owner if i < owners else None))
                owner += i < owners
        return found


# One row tile of the interpreter holds 16 rows: segments below, at and above that.
CASES = {
    "one row": Case(experts_per_group=1, pairs=(1,), owners=(1,)),
    "no rows": Case(experts_per_group=2, pairs=(0, 0), owners=(0, 0)),
    "every row an owner": Case(experts_per_group=1, pairs=(7, 0, 33), owners=(7, 0, 33)),
    "no owners": Case(experts_per_group=2, pairs=(7, 3), owners=(0, 0)),
    "groups of two": Case(
        experts_per_group=2, pairs=(0, 17, 16, 12, 33, 20), owners=(0, 17, 16, 3, 33, 1)
    ),
    "groups of four": Case(
        experts_per_group=4, pairs=(20, 7, 0, 5, 0, 0, 0, 0), owners=(20, 3, 0, 1, 0, 0, 0, 0)
    ),
    "all in the last": Case(experts_per_group=2, pairs=(0, 0, 0, 40), owners=(0, 0, 0, 40)),
    "owners end a tile": Case(experts_per_group=2, pairs=(48, 33), owners=(48, 16)),
}


def fan_out(
    x: Tensor, wide: Tensor, narrow: Tensor | None, case: Case
) -> tuple[Tensor, Tensor | None]:
    x, wide = x.double(), wide.double()
    p = x.new_zeros(case.num_pairs, wide.shape[1])
    q = None if narrow is None else x.new_zeros(case.num_owner_pairs, narrow.shape[1])
    for n, expert, m in case.rows():
        p[n] = wide[expert] @ x[n]
        if m is not None and q is not None and narrow is not None:
            q[m] = narrow[expert // case.experts_per_group].double() @ x[n]
    return p, q


def fan_in(p: Tensor, q: Tensor | None, wide: Tensor, narrow: Tensor | None, case: Case) -> Tensor:
    p, wide = p.double(), wide.double()
    x = p.new_zeros(case.num_pairs, wide.shape[2])
    for n, expert, m in case.rows():
        x[n] = p[n] @ wide[expert]
        if m is not None and q is not None and narrow is not None:
            x[n] += q[m].double() @ narrow[expert // case.experts_per_group].double()
    return x


def fan_weights(
    p: Tensor, q: Tensor | None, x: Tensor, case: Case, transposed: bool
) -> tuple[Tensor, Tensor | None]:
    p, x = p.double(), x.double()
    dwide = p.new_zeros(len(case.pairs), p.shape[1], x.shape[1])
    dnarrow = None if q is None else p.new_zeros(case.num_groups, q.shape[1], x.shape[1])
    for n, expert, m in case.rows():
        dwide[expert] += torch.outer(p[n], x[n])
        if m is not None and q is not None and dnarrow is not None:
            dnarrow[expert // case.experts_per_group] += torch.outer(q[m].double(), x[n])
    if transposed:
        return dwide.mT, None if dnarrow is None else dnarrow.mT
    return dwide, dnarrow


def beside_loops(
    of: Any, case: Case, wide: Tensor, adjugates: bool
) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """Every product that ``of`` has, on random numbers, and what it is.

    Args:
        of: has fan_out, fan_in and fan_weights.
        case: the segments.
        wide: [L, 40, 24], the experts' matrices.
        adjugates: have the groups matrices too?
    """
    x, p = torch.randn(case.num_pairs, 24), torch.randn(case.num_pairs, 40)
    q = torch.randn(case.num_owner_pairs, 8) if adjugates else None
    narrow = torch.randn(case.num_groups, 8, 24) if adjugates else None
    found = [
        *of.fan_out(x, wide, narrow, case),
        of.fan_in(p, q, wide, narrow, case),
        *of.fan_weights(p, q, x, case, False),
        *of.fan_weights(p, q, x, case, True),
    ]
    expected = [
        *fan_out(x, wide, narrow, case),
        fan_in(p, q, wide, narrow, case),
        *fan_weights(p, q, x, case, False),
        *fan_weights(p, q, x, case, True),
    ]
    return zip(found, expected, strict=True)


def assert_close(found: Tensor | None, expected: Tensor | None, dtype: torch.dtype) -> None:
    """``found`` is ``expected`` [fp64], computed in fp32 and rounded to ``dtype``."""
    assert (found is None) == (expected is None)
    if found is None or expected is None:
        return
    assert found.dtype == dtype
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    rounding = 0.0 if dtype == torch.float32 else unit_in_the_last_place(dtype)
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=1e-6 * scale)
