"""The activation kernels against fp64 and autograd."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from .triton_cases import assert_close, unit_in_the_last_place
from .triton_process import interpreted

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Below, at and above the 256 columns that a program works on at a time; and of several times that.
WIDTHS = [8, 24, 256, 264, 768]


def _check(h: Tensor, weight: Tensor, grad: Tensor) -> None:
    from grove_megatron.kernels.triton_swiglu import weighted_swiglu, weighted_swiglu_grad

    wide_h, wide_weight = h.double().requires_grad_(), weight.double().requires_grad_()
    gate, up = wide_h.chunk(2, -1)
    out = F.silu(gate) * up * wide_weight[:, None]
    dh, dweight = torch.autograd.grad(out, (wide_h, wide_weight), grad.double())

    assert_close(weighted_swiglu(h, weight), out.detach(), h.dtype)
    found_dh, found_dweight = weighted_swiglu_grad(grad, h, weight)
    assert_close(found_dh, dh, h.dtype)
    assert found_dweight.dtype == weight.dtype
    # A sum that may cancel is as exact as its terms are large.
    terms = (F.silu(gate) * up * grad.double()).abs().sum(1).detach()
    rounding = 0.0 if weight.dtype == torch.float32 else unit_in_the_last_place(weight.dtype)
    assert ((found_dweight - dweight).abs() <= 3e-7 * terms + rounding * dweight.abs()).all()


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 7, 33])
def test_output_and_all_gradients(num_rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for width in WIDTHS:
        h = (3 * torch.randn(num_rows, 2 * width)).to(dtype)
        _check(h, torch.rand(num_rows), torch.randn(num_rows, width).to(dtype))


@interpreted
def test_operands_that_are_not_contiguous() -> None:
    _check(torch.randn(32, 7).T, torch.rand(14)[::2], torch.randn(16, 7).T)


@interpreted
def test_gates_that_overflow_an_exponential() -> None:
    gate = torch.tensor([[-1e4, -100.0, -90.0, 0.0, 90.0, 100.0, 1e4, 1e-30]])
    _check(torch.cat([gate, torch.ones(1, 8)], 1), torch.ones(1), torch.ones(1, 8))


@interpreted
def test_weights_of_16_bit_get_gradients_of_16_bit() -> None:
    _check(torch.randn(3, 16), torch.rand(3).half(), torch.randn(3, 8))


@interpreted
def test_no_rows() -> None:
    from grove_megatron.kernels.triton_swiglu import weighted_swiglu, weighted_swiglu_grad

    h, weight = torch.randn(0, 16), torch.rand(0)
    assert weighted_swiglu(h, weight).shape == (0, 8)
    dh, dweight = weighted_swiglu_grad(torch.randn(0, 8), h, weight)
    assert dh.shape == (0, 16)
    assert dweight.shape == (0,)
