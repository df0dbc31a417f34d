"""Sinkhorn's iteration: the sums it is to have, Megatron's choice, and no overflow."""

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import sinkhorn
from torch import Tensor

from grove_megatron.functional.sinkhorn import log_sinkhorn


def logits(tokens: int = 96, experts: int = 8, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    z = scale * torch.randn(tokens, experts, generator=generator)
    z[:, 2] += 2 * scale
    return z


def test_rows_and_columns_sum_to_what_they_should() -> None:
    pi = log_sinkhorn(logits().double(), None, 60).exp()
    assert (pi.sum(1) - 1).abs().max() < 1e-12
    assert (pi.sum(0) - 96 / 8).abs().max() < 1e-3


def test_experts_are_chosen_as_megatron_chooses_them() -> None:
    """Whose iteration, on exponentials, waits for the device each time."""
    z = logits()
    theirs = sinkhorn(z)
    ours = log_sinkhorn(z, None, 40).exp()
    assert torch.equal(ours.topk(2, dim=1).indices, theirs.topk(2, dim=1).indices)
    assert ((ours / ours.sum()) - theirs / theirs.sum()).abs().max() < 1e-5


@pytest.mark.parametrize("scale", [30.0, 1e3, 1e5])
def test_large_logits_do_not_overflow(scale: float) -> None:
    z = logits(scale=scale)
    assert not z.exp().isfinite().all()
    found = log_sinkhorn(z, None, 40)
    assert not found.isnan().any()
    if scale < 1e3:
        # Of larger ones as many iterations move little.
        load = found.argmax(1).bincount(minlength=8)
        assert load.max() < z.argmax(1).bincount(minlength=8).max()


def test_its_choice_is_better_balanced() -> None:
    z = logits()
    plain = z.topk(2, dim=1).indices.flatten().bincount(minlength=8)
    found = log_sinkhorn(z, None, 20).topk(2, dim=1).indices.flatten().bincount(minlength=8)
    assert plain.max() > 3 * plain.float().mean()
    assert found.max() < 1.25 * found.float().mean()


def test_tokens_that_do_not_count_change_nothing_for_others() -> None:
    z = logits()
    counted = torch.ones(96, dtype=torch.bool)
    counted[::5] = False
    mixed = log_sinkhorn(z, counted, 30)
    assert torch.allclose(mixed[counted], log_sinkhorn(z[counted], None, 30), atol=1e-5)
    z[~counted] = 1e4
    again = log_sinkhorn(z, counted, 30)
    assert torch.equal(again[counted], mixed[counted])


def test_no_token_counts() -> None:
    nobody = torch.zeros(4, dtype=torch.bool)
    assert log_sinkhorn(logits(4), nobody, 5).isfinite().all()
    assert log_sinkhorn(torch.zeros(0, 4), None, 5).shape == (0, 4)
