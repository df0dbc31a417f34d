"""Parts in fp32 and 16 bits, where fp64 shows nothing."""

from dataclasses import replace

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function

from grove_megatron.parts.compose import Steps, route
from grove_megatron.parts.keep.random import RandomKeep
from grove_megatron.parts.losses.variation import ImportanceLoss, LoadLoss
from grove_megatron.parts.part import Balance, Logits, Seen
from grove_megatron.parts.scoring.softmax import FamilyScoring

KINDS = [("softmax", False), ("softmax", True), ("sigmoid", False), ("sqrtsoftplus", False)]


def logits(dtype=torch.bfloat16) -> torch.Tensor:
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize(("function", "pre_softmax"), KINDS)
def test_weights_of_16_bits_are_megatrons(function, pre_softmax):
    z = logits()
    scoring = FamilyScoring(function, pre_softmax, 3, 2.5)
    ours = route(Steps(scoring=scoring, topk=3), z, None, Seen(training=True))
    probs, chosen = topk_routing_with_score_function(
        z, 3, use_pre_softmax=pre_softmax, scaling_factor=2.5, score_function=function
    )
    assert torch.equal(ours.map_TE, chosen)
    assert torch.equal(ours.probs_TE, probs)


def balance_of(z: torch.Tensor, deviation: torch.Tensor) -> Balance:
    scoring = FamilyScoring("softmax", False, 3)
    routed = route(Steps(scoring=scoring, topk=3), z, None, Seen(training=True))
    return Balance(
        seen=Seen(training=True, learns=True),
        logits=Logits(z_TE=z, clean_TE=z, deviation_TE=deviation),
        routed=routed,
        sent=routed,
        distribution_TE=scoring.distribution(z),
        counted_TE=routed.selected_TE,
        per_token=3,
    )


def test_noise_that_has_nearly_gone_leaves_finite_gradients():
    z = logits(torch.float32)
    deviation = torch.full_like(z, 1e-20).requires_grad_()
    loss = LoadLoss(0.1)(balance_of(z, deviation))
    (grad,) = torch.autograd.grad(loss, deviation)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()


def test_sums_over_tokens_are_not_of_16_bits():
    z = logits().repeat(200, 1)
    narrow = balance_of(z, torch.ones_like(z))
    for loss in (ImportanceLoss(0.1), LoadLoss(0.1)):
        sums = loss.sums(narrow)
        assert sums.dtype == torch.float32
        assert sums.sum() > 4000


def test_draws_of_16_bits_are_not_often_nothing():
    weights = torch.tensor([[0.998, 0.002]], dtype=torch.bfloat16).repeat(100_000, 1)
    torch.manual_seed(0)
    kept = RandomKeep(1.0)(weights, replace(Seen(), training=True))
    share = float(weights[0, 1] / weights[0].sum())
    assert float(kept[:, 1].float().mean()) == pytest.approx(share, rel=0.25)
