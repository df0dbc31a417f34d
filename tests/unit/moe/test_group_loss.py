import pytest
import torch
from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker
from torch.testing import assert_close

from grove_megatron.parts.losses.groups import NAME as GROUP_LOSS
from tests.unit.moe.routers import (
    EXPERTS,
    GROUPS,
    TOKENS,
    TOPK,
    grove_router,
    one_rank,
    route,
    tokens,
)


@pytest.fixture(scope="module", autouse=True)
def _one_rank(tmp_path_factory):
    with one_rank(tmp_path_factory.mktemp("store") / "file"):
        yield


def group_loss(logits, coeff, valid=None, *, scores=torch.softmax) -> torch.Tensor:
    """Written out, group by group and token by token."""
    valid = torch.ones(len(logits), dtype=torch.bool) if valid is None else valid
    probs = scores(logits[valid], dim=-1)
    chosen = logits[valid].topk(TOPK, dim=1).indices
    size = EXPERTS // GROUPS
    touched = [
        sum(any(e // size == g for e in row) for row in chosen.tolist()) for g in range(GROUPS)
    ]
    loss = torch.zeros(())
    for g in range(GROUPS):
        mean = probs[:, g * size : (g + 1) * size].sum(1).mean()
        loss = loss + touched[g] / sum(touched) * mean
    return coeff * GROUPS * loss


def normed_sigmoid(logits: torch.Tensor, dim: int) -> torch.Tensor:
    scores = torch.sigmoid(logits)
    return scores / scores.sum(dim, keepdim=True)


def recorded() -> float:
    """The loss in Megatron's tracker, which then is empty."""
    tracker = get_moe_metrics_tracker()
    value = tracker.metrics[GROUP_LOSS].values.sum().item()
    tracker.clear()
    return value


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("scoring", ["grove", "softmax"])
def test_the_loss_over_groups_adds_its_gradient_and_is_recorded(scoring, padded):
    config = {"grove_router_scoring": scoring}
    plain = grove_router(**config)
    router = grove_router(**config, grove_group_aux_loss_coeff=0.2)
    padding = torch.arange(TOKENS) % 3 == 0 if padded else None
    named = {} if padding is None else {"padding_mask": padding.unsqueeze(1)}
    logits = tokens(0).requires_grad_()
    upstream = torch.randn(TOKENS, EXPERTS)
    expected_probs, expected_map = route(plain, logits, **named)
    loss = group_loss(
        logits,
        0.2,
        None if padding is None else ~padding,
        scores=torch.softmax if scoring == "grove" else normed_sigmoid,
    )
    (expected,) = torch.autograd.grad((expected_probs * upstream).sum() + loss, logits)
    get_moe_metrics_tracker().clear()
    probs, chosen = route(router, logits, **named)
    assert torch.equal(chosen, expected_map)
    assert torch.equal(probs, expected_probs)
    (found,) = torch.autograd.grad((probs * upstream).sum(), logits)
    assert_close(found, expected)
    assert recorded() == pytest.approx(loss.item() / 0.2, rel=1e-6)
    (without,) = torch.autograd.grad((route(plain, logits, **named)[0] * upstream).sum(), logits)
    assert (found - without).abs().max() > 1e-4


def test_a_loss_per_token_is_scaled_by_the_tokens_that_are_not_padding():
    # Megatron divides every gradient by the number of tokens then.
    per_token = {"calculate_per_token_loss": True, "grove_group_aux_loss_coeff": 0.2}
    padding = torch.arange(TOKENS) % 3 == 0
    grads = []
    for more in (per_token, {"grove_group_aux_loss_coeff": 0.2}):
        logits = tokens(0).requires_grad_()
        probs, _ = route(grove_router(**more), logits, padding_mask=padding.unsqueeze(1))
        grads += torch.autograd.grad(probs.sum() * 0, logits)
    assert grads[1].any()
    assert_close(grads[0], grads[1] * int((~padding).sum()))


@pytest.mark.parametrize("how", ["evaluation", "no gradient"])
def test_without_training_there_is_no_loss_over_groups(how):
    router = grove_router(grove_group_aux_loss_coeff=0.2).train(how != "evaluation")
    get_moe_metrics_tracker().clear()
    with torch.set_grad_enabled(how != "no gradient"):
        route(router, tokens(0))
    assert GROUP_LOSS not in get_moe_metrics_tracker().metrics or recorded() == 0


def test_the_loss_over_groups_is_beside_those_over_experts():
    both = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.1}
    grads = []
    for more in (
        both,
        {"grove_group_aux_loss_coeff": 0.2},
        {**both, "grove_group_aux_loss_coeff": 0.2},
    ):
        logits = tokens(0).requires_grad_()
        probs, _ = route(grove_router(**more), logits)
        grads += torch.autograd.grad(probs.sum() * 0, logits)
    assert_close(grads[2], grads[0] + grads[1])
