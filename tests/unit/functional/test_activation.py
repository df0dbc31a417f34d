import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from grove_megatron.functional.activation import weighted_swiglu


def by_hand(h: Tensor, weight: Tensor) -> Tensor:
    gate, up = h.chunk(2, -1)
    return gate / (1 + torch.exp(-gate)) * up * weight[:, None]


def leaves(n: int, width: int, dtype=torch.float64, weight_dtype=None) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    h = torch.randn(n, 2 * width, generator=g, dtype=torch.float64) * 2
    weight = torch.rand(n, generator=g, dtype=torch.float64)
    made = [h.to(dtype), weight.to(weight_dtype or dtype)]
    return [leaf.requires_grad_() for leaf in made]


def with_gradients(function, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    y = function(*inputs)
    return [y, *torch.autograd.grad(y, inputs, upstream.to(y.dtype))]


def upstream_of(n: int, width: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# The last has more elements than are worked on at a time, in rows that do not divide them.
@pytest.mark.parametrize(("n", "width"), [(0, 3), (1, 1), (7, 3), (500, 301)])
def test_it_is_silu_of_the_gate_times_up_times_weight_with_every_gradient(n, width):
    inputs, upstream = leaves(n, width), upstream_of(n, width)
    found = with_gradients(weighted_swiglu, inputs, upstream)
    expected = with_gradients(by_hand, inputs, upstream)
    assert found[0].shape == (n, width)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_its_gradient_is_the_limit_of_its_differences():
    assert torch.autograd.gradcheck(weighted_swiglu, leaves(4, 3))


def test_a_weight_of_zero_still_has_a_gradient():
    h = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(weighted_swiglu(h, weight).sum(), weight)
    assert_close(grad, by_hand(h, torch.ones(1)).sum(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, None])
def test_sixteen_bits_are_computed_in_fp32_and_rounded_once(dtype, weight_dtype):
    inputs = leaves(64, 33, dtype, weight_dtype)
    upstream = upstream_of(64, 33).to(dtype)
    found = with_gradients(weighted_swiglu, inputs, upstream)
    exact = [leaf.detach().double().requires_grad_() for leaf in inputs]
    expected = with_gradients(by_hand, exact, upstream)
    assert [x.dtype for x in found] == [dtype, dtype, weight_dtype or dtype]
    for mine, theirs in zip(found, expected, strict=True):
        half_a_unit = torch.finfo(mine.dtype).eps / 2
        room = 1e-5  # for fp32's own roundings, and for denormal numbers
        error = (mine.double() - theirs).abs()
        assert (error <= theirs.abs() * half_a_unit * 1.001 + room).all()


def test_an_upstream_gradient_of_any_strides_is_taken():
    inputs = leaves(5, 3)
    found = torch.autograd.grad(weighted_swiglu(*inputs).sum(), inputs)
    expected = torch.autograd.grad(by_hand(*inputs).sum(), inputs)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
