"""Without balance most experts of a skewed router get nothing; with any rule none is forgotten."""

import pytest
import torch
from torch import Tensor

from grove_megatron.functional.balance import sign_step
from grove_megatron.moe.router import GroveRouter
from grove_megatron.parts import registry
from grove_megatron.parts.coefficient.adaptive import AdaptiveCoefficient, Reference
from grove_megatron.parts.part import Draws
from tests.unit.parts.test_parts import (
    HIDDEN,
    config_of,
    make_router,
)

pytestmark = pytest.mark.usefixtures("on_one_rank")
EXPERTS, TOKENS, STEPS = 12, 96, 250


def skewed(parse, flags: str) -> GroveRouter:
    """A router to which a few experts are dear, whatever the token."""
    router = make_router(config_of(f"--moe-router-topk 2 {flags}", parse, groups=True)).train()
    router.draws = Draws()
    generator = torch.Generator().manual_seed(0)
    router.weight.data = 0.3 * torch.randn(
        EXPERTS, HIDDEN, dtype=torch.float64, generator=generator
    )
    router.weight.data[:, 0] = torch.linspace(4, -4, EXPERTS)
    for name, weight in router.named_parameters():
        if name != "weight":
            weight.data.zero_()
    if router.expert_bias is not None:
        router.expert_bias.zero_()
    return router


def tokens(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(TOKENS, 1, HIDDEN, dtype=torch.float64, generator=generator)
    # What all tokens have.
    x[..., 0] = 1
    return x


def shares(router: GroveRouter) -> Tensor:
    """Of all pairs, those of every expert."""
    with torch.no_grad():
        load = sum(router(tokens(-1 - step))[1].sum(0) for step in range(10)).double()
    return load / load.sum()


def train(router: GroveRouter) -> None:
    """By its losses alone, and by what moves after every batch."""
    if registry.one(router.config, "scoring") is None:
        # Its selector balances, and nothing is learned.
        return
    optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
    update = registry.one(router.config, "update")
    for step in range(STEPS):
        probs, chosen = router(tokens(step))
        optimizer.zero_grad()
        if probs.requires_grad:
            (0 * probs.sum()).backward()
            optimizer.step()
        if update is not None:
            rate = 0.02 * (1 - step / STEPS)
            moved = (update.build(router.config) or sign_step)(chosen.sum(0).unsqueeze(0), rate)
            router.expert_bias += moved[0].float()


def test_without_balance_half_of_the_experts_get_nothing(parse) -> None:
    router = skewed(parse, "")
    train(router)
    found = shares(router)
    assert int((found < 0.01).sum()) >= EXPERTS // 2


EXPERT_BALANCE = {
    "aux": "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.1",
    "sequence": "--moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 0.1",
    "adaptive": "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.1 "
    "--grove-adaptive-aux-loss",
    # Without noise an expert that nobody selects has no weight, and no gradient of its importance.
    "noise": "--grove-noisy-topk --grove-importance-loss-coeff 0.1 --grove-load-loss-coeff 0.1",
    "bias-rms": "--moe-router-enable-expert-bias --grove-bias-update-rule rms",
    "bias-sign": "--moe-router-enable-expert-bias --grove-bias-update-rule sign",
    "bias-error": "--moe-router-enable-expert-bias --grove-bias-update-rule error",
    "sinkhorn": "--grove-router-selector sinkhorn --grove-sinkhorn-iterations 60",
    "base": "--grove-router-selector base --moe-router-topk 1",
    "expert-choice": "--grove-router-selector expert_choice --grove-expert-choice-sees-future",
}


@pytest.mark.parametrize("name", EXPERT_BALANCE)
def test_with_balance_no_expert_is_forgotten(name: str, parse) -> None:
    router = skewed(parse, EXPERT_BALANCE[name])
    train(router)
    assert float(shares(router).min()) > 0.25 / EXPERTS, name


@pytest.mark.parametrize(
    "flags",
    [
        "--grove-device-loss-coeff 0.1 --grove-loss-devices 6",
        "--grove-group-aux-loss-coeff 0.1",
        "--moe-router-enable-expert-bias --grove-bias-level groups",
        "--moe-router-enable-expert-bias --grove-bias-level groups --grove-bias-update-rule sign",
        "--moe-router-enable-expert-bias --grove-bias-level groups --grove-bias-update-rule error",
    ],
)
def test_with_balance_of_groups_no_group_is(flags: str, parse) -> None:
    """Six groups, or devices, of two experts."""
    router = skewed(parse, flags)
    train(router)
    assert float(shares(router).reshape(6, 2).sum(1).min()) > 0.25 / 6


def test_a_bias_of_groups_moves_its_experts_together(parse) -> None:
    router = skewed(parse, "--moe-router-enable-expert-bias --grove-bias-level groups")
    train(router)
    bias = router.expert_bias.reshape(6, 2)
    assert torch.equal(bias[:, 0], bias[:, 1])
    assert bias[:, 0].unique().numel() > 1


# ------------------------------------------------------------------------------------ the adaptive


def adaptive(parse, flags: str = "", start: str = "0.004") -> GroveRouter:
    return skewed(
        parse,
        "--grove-adaptive-aux-loss --moe-router-load-balancing-type aux_loss "
        f"--moe-aux-loss-coeff {start} {flags}",
    )


@pytest.mark.parametrize(("share", "aim"), [(0.02, 0.004), (0.05, 0.01), (0.4, 0.01), (0.0, 0.0)])
def test_it_goes_where_the_paper_says_as_fast_as_the_paper_says(
    share: float,
    aim: float,
    parse,
) -> None:
    one = AdaptiveCoefficient(adaptive(parse, start="0.007").config)
    pairs = torch.tensor([round(share * 1000), 1000])
    slow, alpha = Reference(adaptive(parse).config), 0.007
    for step in range(1, 301):
        one.step(pairs)
        alpha = slow.step(alpha, *pairs.tolist())
        assert one.value == pytest.approx(alpha, rel=1e-12)
        assert one.value == pytest.approx(aim + (0.007 - aim) * 0.99**step, rel=1e-12)


def test_it_begins_where_its_own_loss_does(parse) -> None:
    kinds = "--moe-router-load-balancing-type none seq_aux_loss --moe-aux-loss-coeff 0.3 0.02"
    assert AdaptiveCoefficient(skewed(parse, kinds).config).value == 0.02


def test_no_tokens_move_nothing(parse) -> None:
    one = AdaptiveCoefficient(adaptive(parse).config)
    one.step(torch.tensor([0, 0]))
    assert one.value == 0.004


def test_it_counts_what_is_dropped_or_would_be(parse) -> None:
    capacity = "--moe-expert-capacity-factor 1.0 --moe-token-drop-policy position"
    real, virtual = adaptive(parse, capacity), adaptive(parse)
    for router in (real, virtual):
        assert router.coefficient is not None
        router(tokens(0))
        dropped, pairs = router.coefficient.pairs.tolist()
        assert pairs == 2 * TOKENS
        limit = -(-2 * TOKENS // EXPERTS)
        plain = skewed(parse, "").train()
        load = plain(tokens(0))[1].sum(0)
        assert dropped == int((load - limit).clamp(min=0).sum()) > 0
        with torch.no_grad():
            # What recompute runs again.
            router(tokens(1))
        router.eval()(tokens(1))
        assert router.coefficient.pairs.tolist() == [dropped, pairs]


def test_the_loss_weighs_what_it_has_become(parse) -> None:
    router, plain = (
        adaptive(parse),
        skewed(parse, "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.006"),
    )
    assert router.coefficient is not None
    while router.coefficient.value < 0.00599999:
        router.coefficient.step(torch.tensor([3, 100]))
    gradients = []
    for one in (router, plain):
        probs, _ = one(tokens(0))
        gradients.append(torch.autograd.grad(0 * probs.sum(), one.weight)[0])
    assert torch.allclose(*gradients, rtol=1e-5)
    assert gradients[0].abs().max() > 0


def test_its_state_has_all_bits_in_16_bits_models(parse) -> None:
    router = adaptive(parse)
    router.coefficient.step(torch.tensor([1, 3]))
    value = router.coefficient.value
    assert router.bfloat16().coefficient.value == value
    again = adaptive(parse, start="0.5")
    assert again.coefficient.value == 0.5
    # Moved to a device, its buffers are others that count their versions anew.
    again.coefficient._apply(torch.clone)
    again.load_state_dict(router.state_dict())
    assert again.coefficient.value == value


def test_a_weight_that_nobody_moves_is_refused(parse) -> None:
    router = adaptive(parse)
    router.given_config.grove_moves = False
    with pytest.raises(ValueError, match="adaptive-aux-loss \\(True\\) is moved by nobody"):
        router(tokens(0))
