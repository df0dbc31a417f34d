import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from grove_megatron.functional.permute import add_rows, take_rows


@st.composite
def rows_and_index(draw):
    num_rows = draw(st.integers(0, 6))
    index = draw(st.lists(st.integers(0, num_rows - 1), max_size=8)) if num_rows else []
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows = torch.randn(num_rows, 3, generator=generator, dtype=torch.float64)
    return rows, torch.tensor(index, dtype=torch.int64), generator


@given(rows_and_index())
def test_taken_rows_are_the_named_rows_in_order(case):
    rows, index, _ = case
    taken = take_rows(rows, index)
    assert taken.shape == (len(index), 3)
    for position, source in enumerate(index.tolist()):
        assert_close(taken[position], rows[source])


@pytest.mark.parametrize("index", [[0, 1, 2, 3], [0], []])
def test_taken_rows_never_share_storage_with_the_input(index):
    rows = torch.randn(4, 3)
    before = rows.clone()
    take_rows(rows, torch.tensor(index, dtype=torch.int64)).zero_()
    assert_close(rows, before)


@given(rows_and_index())
def test_adding_is_the_transpose_of_taking(case):
    rows, index, generator = case
    values = torch.randn(len(index), 3, generator=generator, dtype=torch.float64)
    added = add_rows([(values, index)], rows.shape[0], rows.dtype)
    assert_close((take_rows(rows, index) * values).sum(), (rows * added).sum())


@given(rows_and_index())
def test_each_is_the_gradient_of_the_other(case):
    rows, index, generator = case
    values = torch.randn(len(index), 3, generator=generator, dtype=torch.float64)
    rows.requires_grad_()
    values.requires_grad_()
    (grad_rows,) = torch.autograd.grad(take_rows(rows, index), rows, values.detach())
    assert_close(grad_rows, add_rows([(values, index)], rows.shape[0], rows.dtype).detach())
    added = add_rows([(values, index)], rows.shape[0], rows.dtype)
    (grad_values,) = torch.autograd.grad(added, values, rows.detach())
    assert_close(grad_values, take_rows(rows, index).detach())


def test_rows_with_one_destination_are_summed_over_all_pieces():
    first = (torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([2, 0, 2]))
    second = (torch.tensor([[8.0]]), torch.tensor([2]))
    assert add_rows([first, second], 4, torch.float32).tolist() == [[2.0], [0.0], [13.0], [0.0]]


def test_an_empty_piece_adds_nothing():
    nothing = (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    something = (torch.ones(1, 2), torch.tensor([1]))
    expected = [[0.0, 0.0], [1.0, 1.0]]
    assert add_rows([nothing, something], 2, torch.float32).tolist() == expected
    assert add_rows([nothing], 0, torch.float32).shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_rows_are_summed_in_fp32(dtype):
    large = 2.0 / torch.finfo(dtype).eps  # adding 1 to it is lost in 16 bits
    first = (torch.full((1, 3), large, dtype=dtype), torch.tensor([0]))
    ones = [(torch.ones(1, 3, dtype=dtype), torch.tensor([0]))] * 16
    assert add_rows([first, *ones], 1, torch.float32).tolist() == [[large + 16] * 3]


def test_the_result_has_the_dtype_that_was_asked_for():
    values, index = torch.ones(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1])
    for dtype in (torch.bfloat16, torch.float32):
        assert add_rows([(values, index)], 2, dtype).dtype == dtype
    doubles = torch.ones(2, 3, dtype=torch.float64) / 3
    assert_close(add_rows([(doubles, index)], 2, torch.float64), doubles, rtol=0, atol=0)
