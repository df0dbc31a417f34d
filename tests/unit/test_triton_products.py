"""The product kernels against loops in fp64: every output, odd sizes, odd layouts."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from . import triton_cases as loops
from .triton_cases import CASES, Case, assert_close
from .triton_process import interpreted

# (K, P, Q); a tile of the interpreter is 16 x 32 and sums 16 at a time. The kernels leave masks
# away where all widths fill their tiles: here none does, all do, all but one do.
WIDTHS = [(24, 40, 8), (32, 64, 32), (24, 32, 32), (32, 40, 32), (32, 32, 24)]


class Inputs:
    """Random operands of all products of a case."""

    def __init__(self, case: Case, widths: tuple[int, int, int], dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        k, p, q = widths
        self.x = torch.randn(case.num_pairs, k).to(dtype)
        self.p = torch.randn(case.num_pairs, p).to(dtype)
        self.q = torch.randn(case.num_owner_pairs, q).to(dtype)
        self.wide = torch.randn(len(case.pairs), p, k).to(dtype)
        self.narrow = torch.randn(case.num_groups, q, k).to(dtype)


def _check_all(case: Case, inputs: Inputs, *, adjugates: bool = True) -> None:
    """All three products, the last in both orientations."""
    from grove_megatron.kernels import triton_products as kernels

    x, p, wide, dtype = inputs.x, inputs.p, inputs.wide, inputs.x.dtype
    narrow, q = (inputs.narrow, inputs.q) if adjugates else (None, None)
    found = kernels.fan_out(x, wide, narrow, case)
    for a, b in zip(found, loops.fan_out(x, wide, narrow, case), strict=True):
        assert_close(a, b, dtype)
    assert_close(
        kernels.fan_in(p, q, wide, narrow, case),
        loops.fan_in(p, q, wide, narrow, case),
        dtype,
    )
    for transposed in (False, True):
        found = kernels.fan_weights(p, q, x, case, transposed)
        for a, b in zip(found, loops.fan_weights(p, q, x, case, transposed), strict=True):
            assert_close(a, b, dtype)


@interpreted
@pytest.mark.parametrize("name", CASES)
def test_any_segments(name: str) -> None:
    _check_all(CASES[name], Inputs(CASES[name], WIDTHS[0], torch.float32))


SMALL = Case(experts_per_group=2, pairs=(0, 17, 16, 12), owners=(0, 17, 16, 3))


@interpreted
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_any_widths(widths: tuple[int, int, int]) -> None:
    _check_all(SMALL, Inputs(SMALL, widths, torch.float32))


@interpreted
@pytest.mark.parametrize("widths", WIDTHS[:2], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit(widths: tuple[int, int, int], dtype: torch.dtype) -> None:
    _check_all(SMALL, Inputs(SMALL, widths, dtype))


@interpreted
@pytest.mark.parametrize("name", ["groups of two", "no rows"])
def test_experts_alone(name: str) -> None:
    _check_all(CASES[name], Inputs(CASES[name], WIDTHS[2], torch.float32), adjugates=False)


def _columns(w: Tensor) -> Tensor:
    """The same values, next to each other along the middle dimension."""
    return w.mT.contiguous().mT


def _padded(w: Tensor) -> Tensor:
    """The same values in the middle of a larger tensor."""
    larger = torch.full((2 * w.shape[0], w.shape[1] + 3, w.shape[2] + 5), torch.nan, dtype=w.dtype)
    inside = larger[::2, 1 : 1 + w.shape[1], 2 : 2 + w.shape[2]]
    inside.copy_(w)
    return inside


def _scattered(w: Tensor) -> Tensor:
    """The same values, no two of a matrix next to each other."""
    return w.repeat_interleave(2, -1)[..., ::2]


Layout = Callable[[Tensor], Tensor]


@interpreted
@pytest.mark.parametrize(
    ("of_wide", "of_narrow"),
    [
        (_columns, _columns),
        (_padded, Tensor.clone),
        (Tensor.clone, _padded),
        (_scattered, _scattered),
        (_columns, Tensor.clone),
        (Tensor.clone, _columns),
        (_columns, _scattered),
        (_scattered, _columns),
    ],
)
def test_any_layouts(of_wide: Layout, of_narrow: Layout) -> None:
    case = Case(experts_per_group=2, pairs=(5, 18), owners=(5, 2))
    inputs = Inputs(case, WIDTHS[2], torch.float32)
    wide, narrow = of_wide(inputs.wide), of_narrow(inputs.narrow)
    assert torch.equal(wide, inputs.wide)
    assert torch.equal(narrow, inputs.narrow)
    inputs.wide, inputs.narrow = wide, narrow
    _check_all(case, inputs)


@interpreted
def test_rows_that_are_not_contiguous() -> None:
    case = CASES["groups of two"]
    inputs = Inputs(case, WIDTHS[0], torch.float32)
    for name in ("x", "p", "q"):
        setattr(inputs, name, getattr(inputs, name).T.contiguous().T)
    _check_all(case, inputs)


@interpreted
def test_experts_and_adjugates_share_one_fp32_sum() -> None:
    """Summed apart and rounded to 16 bit before they are added, the small terms would be lost."""
    from grove_megatron.kernels.triton_products import fan_in

    case = Case(experts_per_group=1, pairs=(2,), owners=(1,))
    p = torch.tensor([[256.0, 1.0] + [0.0] * 6]).expand(2, 8).bfloat16()
    q = torch.tensor([[-256.0, 2.0**-7] + [0.0] * 6]).bfloat16()
    ones = torch.ones(1, 8, 8, dtype=torch.bfloat16)
    x = fan_in(p, q, ones, ones, case)
    assert torch.equal(x[0], torch.full((8,), 1 + 2.0**-7, dtype=torch.bfloat16))
    assert torch.equal(x[1], torch.full((8,), 256.0, dtype=torch.bfloat16))
