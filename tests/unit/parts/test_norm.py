"""What normalised logits promise beside their formula."""

import pytest
import torch
from torch.testing import assert_close

from grove_megatron.parts.logits.norm import LogitNorm
from grove_megatron.parts.part import Logits, Seen


def normed(z: torch.Tensor, correction: int = 0, scale: float = 1.0) -> torch.Tensor:
    return LogitNorm(correction, scale, 1e-6)(Logits(z_TE=z), Seen()).z_TE


@pytest.mark.parametrize("correction", [0, 1])
def test_scale_and_shift_of_the_logits_do_not_matter_and_the_deviation_is_the_scale(correction):
    z = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = normed(z, correction, 1.5)
    assert_close(normed(7 * z + 3, correction, 1.5), found)
    assert_close(found.std(dim=1, correction=correction), torch.full((5,), 1.5).double())
    assert_close(found.mean(dim=1), torch.zeros(5).double(), atol=1e-15, rtol=0)


def test_the_deviation_of_a_sample_is_larger_by_a_known_factor():
    z = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(normed(z, 0), normed(z, 1) * (8 / 7) ** 0.5)


def test_the_logits_that_the_z_loss_keeps_small_are_those_before():
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert LogitNorm(0, 1.0, 1e-6)(Logits(z_TE=z), Seen()).before is z


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_router_that_starts_at_zero_has_finite_logits_and_gradients(dtype):
    z = torch.zeros(4, 6, dtype=dtype, requires_grad=True)
    assert torch.isfinite(LogitNorm(0, 1.0, 1e-30)(Logits(z_TE=z), Seen()).z_TE).all()
    found = normed(z)
    (grad,) = torch.autograd.grad((found * torch.randn(4, 6).to(dtype)).sum(), z)
    assert found.dtype == dtype
    assert (found == 0).all()
    assert torch.isfinite(grad).all()
    # Of the size of a gradient without the norm, and not of 1 / eps.
    assert 0 < grad.abs().max() < 10
