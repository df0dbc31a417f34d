import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grove_megatron.functional.index import gather_distinct, permute_columns, scatter_distinct


@st.composite
def positions(draw):
    """A shape, and some of its flat positions, each once, in any order."""
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3)))
    numel = torch.Size(shape).numel()
    order = draw(st.permutations(range(numel)))
    index = order[: draw(st.integers(0, numel))]
    return shape, torch.tensor(index, dtype=torch.int64)


def numbers(*shape: int) -> torch.Tensor:
    """All different, none 0."""
    return torch.arange(1.0, torch.Size(shape).numel() + 1).reshape(shape)


@given(positions())
def test_gathered_values_are_those_at_the_positions_in_order(case):
    shape, index = case
    x = numbers(*shape)
    assert gather_distinct(x, index).tolist() == [x.flatten()[i].item() for i in index.tolist()]


@given(positions(), st.sampled_from([0.0, -7.0, float("-inf")]))
def test_scattered_values_lie_at_their_positions_and_the_rest_is_the_fill(case, fill):
    shape, index = case
    values = numbers(index.numel())
    scattered = scatter_distinct(values, index, shape, fill)
    expected = [fill] * torch.Size(shape).numel()
    for value, at in zip(values.tolist(), index.tolist(), strict=True):
        expected[at] = value
    assert scattered.shape == shape
    assert scattered.flatten().tolist() == expected


@given(positions())
def test_each_is_the_gradient_of_the_other(case):
    shape, index = case
    x, values = numbers(*shape).requires_grad_(), (-numbers(index.numel())).requires_grad_()
    (grad_x,) = torch.autograd.grad(gather_distinct(x, index), x, values.detach())
    assert torch.equal(grad_x, scatter_distinct(values, index, shape).detach())
    scattered = scatter_distinct(values, index, shape, float("-inf"))
    (grad_values,) = torch.autograd.grad(scattered, values, x.detach())
    assert torch.equal(grad_values, gather_distinct(x, index).detach())


def test_positions_are_those_of_the_logical_order_whatever_the_strides():
    x = numbers(2, 3).T.requires_grad_()
    index = torch.tensor([1, 4])
    assert gather_distinct(x, index).tolist() == [4.0, 3.0]
    (grad,) = torch.autograd.grad(gather_distinct(x, index).sum(), x)
    assert grad.tolist() == [[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    values = torch.ones(1, requires_grad=True)
    upstream = numbers(2, 3).T
    (grad,) = torch.autograd.grad(
        scatter_distinct(values, torch.tensor([4]), (3, 2)), values, upstream
    )
    assert grad.tolist() == [3.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_the_values_is_kept(dtype):
    x, index = torch.ones(2, 2, dtype=dtype), torch.tensor([3])
    assert gather_distinct(x, index).dtype == dtype
    assert scatter_distinct(x[0, :1], index, (2, 2)).dtype == dtype


def test_columns_are_permuted_and_their_gradients_go_back():
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    order = torch.tensor([2, 0, 3, 1])
    y = permute_columns(x, order, order.argsort())
    assert torch.equal(y, x[:, order])
    grad = torch.randn(5, 4, dtype=torch.float64)
    (found,) = torch.autograd.grad(y, x, grad)
    (expected,) = torch.autograd.grad(x[:, order], x, grad)
    assert torch.equal(found, expected)
