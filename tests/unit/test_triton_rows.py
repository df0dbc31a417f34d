"""The row kernels against torch and plain loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from .triton_cases import unit_in_the_last_place
from .triton_process import interpreted

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Below, at and above the stretch of 2048 that one program takes; none a power of two but one.
WIDTHS = [8, 72, 2048, 2056, 4104]


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [0, 1, 7, 33])
def test_rows_are_taken(num_rows: int, dtype: torch.dtype) -> None:
    from grove_megatron.kernels.triton_rows import take_rows

    for width in WIDTHS:
        x = torch.randn(9, width).to(dtype)
        index = torch.randint(9, (num_rows,))
        taken = take_rows(x, index)
        assert taken.dtype == dtype
        torch.testing.assert_close(taken, x[index], rtol=0, atol=0)


@interpreted
def test_rows_are_taken_from_a_view_and_the_last_one_too() -> None:
    from grove_megatron.kernels.triton_rows import take_rows

    x = torch.randn(24, 5).T
    index = torch.tensor([4, 4, 0, 3, 4])[::2]
    assert torch.equal(take_rows(x, index), x[index])


@interpreted
def test_no_row_is_taken_from_nothing() -> None:
    from grove_megatron.kernels.triton_rows import sum_rows, take_rows

    nothing = torch.zeros(0, dtype=torch.int64)
    assert take_rows(torch.randn(0, 16), nothing).shape == (0, 16)
    assert sum_rows(torch.randn(0, 16), torch.zeros(1, dtype=torch.int64), nothing).shape == (0, 16)
    none_in_three = sum_rows(torch.randn(0, 16), torch.zeros(4, dtype=torch.int64), nothing)
    assert torch.equal(none_in_three, torch.zeros(3, 16))


def _loop(y: Tensor, bags: list[list[int]]) -> Tensor:
    out = torch.zeros(len(bags), y.shape[1], dtype=torch.float64)
    for v, bag in enumerate(bags):
        for i in bag:
            out[v] += y[i].double()
    return out


def _check_sums(y: Tensor, bags: list[list[int]]) -> None:
    from grove_megatron.kernels.triton_rows import sum_rows

    start = torch.tensor([0, *(len(bag) for bag in bags)]).cumsum(0)
    index = torch.tensor([i for bag in bags for i in bag], dtype=torch.int64)
    summed = sum_rows(y, start, index)
    assert summed.dtype == y.dtype
    # Sums of 16-bit rows are rounded once.
    rounding = 0.0 if y.dtype == torch.float32 else unit_in_the_last_place(y.dtype)
    scale = float(y.abs().max()) if y.numel() else 0.0
    most = max(map(len, bags), default=0)
    torch.testing.assert_close(
        summed.double(), _loop(y, bags), rtol=rounding, atol=2e-7 * most * scale
    )


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_bags_are_summed_in_fp32(width: int, dtype: torch.dtype) -> None:
    # Empty first, in the middle and last; shorter and longer than what is loaded at once.
    bags = [[], [3], [1, 0, 6], [], [2, 4, 5, 7], [8, 9, 10, 11, 12, 13, 14, 15, 3], []]
    _check_sums(torch.randn(16, width).to(dtype), bags)


@interpreted
def test_16_bit_rows_are_not_summed_in_16_bit() -> None:
    from grove_megatron.kernels.triton_rows import sum_rows

    # In bf16 256 + 1 is 256: a running sum in 16 bit stays there.
    y = torch.tensor([[256.0], [1.0], [1.0], [1.0], [1.0], [1.0], [1.0]]).expand(7, 8)
    start, index = torch.tensor([0, 7]), torch.arange(7)
    summed = sum_rows(y.bfloat16(), start, index)
    assert torch.equal(summed, torch.full((1, 8), 262.0, dtype=torch.bfloat16))


@st.composite
def _bags(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    rows = draw(st.integers(1, 12))
    bag = st.lists(st.integers(0, rows - 1), max_size=11)
    return rows, draw(st.lists(bag, min_size=1, max_size=6))


@interpreted
def test_any_bags_are_summed() -> None:
    @settings(deadline=None, database=None, max_examples=40, derandomize=True)
    @given(case=_bags(), eighths=st.integers(1, 5), dtype=st.sampled_from(DTYPES))
    def check(case: tuple[int, list[list[int]]], eighths: int, dtype: torch.dtype) -> None:
        rows, bags = case
        _check_sums(torch.randn(rows, 8 * eighths).to(dtype), bags)

    check()
