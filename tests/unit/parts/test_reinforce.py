"""REINFORCE: on average its gradient is that of the expected loss, exactly, and no other."""

from itertools import product

import pytest
import torch
from torch import Tensor

from grove_megatron.functional.policy import Learn, Reward
from grove_megatron.moe.carried import Carried
from grove_megatron.moe.router import GroveRouter
from grove_megatron.parts.part import Draws, Seen
from grove_megatron.parts.selector.reinforce import log_probability
from tests.unit.parts.test_parts import (
    HIDDEN,
    config_of,
    make_router,
)

pytestmark = pytest.mark.usefixtures("on_one_rank")
EXPERTS = 12
REINFORCE = "--grove-router-selector reinforce --moe-router-pre-softmax"


def made(parse, topk: int, flags: str = "") -> GroveRouter:
    config = config_of(f"{REINFORCE} --moe-router-topk {topk} {flags}", parse, groups=True)
    router = make_router(config).train()
    router.draws = Draws()
    return router


class Toy:
    """Losses of tokens by what their experts say of them, as far as they were chosen and weighed.

    Whole losses have weights and a mask, as those of a language model.
    """

    def __init__(self, tokens: int) -> None:
        generator = torch.Generator().manual_seed(tokens)
        double = {"dtype": torch.float64, "generator": generator}
        self.x = torch.randn(tokens, 1, HIDDEN, **double)
        self.said = torch.randn(tokens, EXPERTS, **double)
        self.weights = torch.tensor([0.3, 0.0, 0.7, 1.0], dtype=torch.float64)[:tokens]
        if tokens == 1:
            self.weights = torch.tensor([0.4], dtype=torch.float64)

    def losses(self, probs: Tensor) -> Tensor:
        """[1, T]"""
        return ((probs * self.said).sum(1) - 0.5).square().unsqueeze(0)

    def whole(self, losses: Tensor) -> Tensor:
        return (self.weights * losses).sum()


def estimate(router: GroveRouter, toy: Toy, chosen: Tensor) -> tuple[list[Tensor], Tensor]:
    """The gradients of the router's matrix and of the tokens, and how likely this choice is."""
    assert router.steps.selector is not None
    router.steps.selector.choose = lambda z_TE, seen: chosen
    x = toy.x.clone().requires_grad_()
    router.carried = Carried(reward=x.new_zeros(len(x), 1, 4))
    probs, _ = router(x)
    reward = router.handed.reward
    losses = Reward.apply(toy.losses(probs), reward, slice(0, len(x)))
    grads = torch.autograd.grad(toy.whole(losses), [router.weight, x])
    with torch.no_grad():
        z_TE = router.gating(x).reshape(len(x), -1)
        likely = log_probability(z_TE, chosen).exp().prod()
    return [*grads], likely


def choices(tokens: int, topk: int) -> list[Tensor]:
    """Of all tokens together: all that can be drawn, in an order."""
    single = [c for c in product(range(EXPERTS), repeat=topk) if len({*c}) == topk]
    return [torch.tensor(together) for together in product(single, repeat=tokens)]


def exact(router: GroveRouter, toy: Toy, every: list[Tensor]) -> list[Tensor]:
    """Of the expected loss, by its definition."""
    x = toy.x.clone().requires_grad_()
    z_TE = torch.nn.functional.linear(x, router.weight).reshape(len(x), -1)
    shares = torch.softmax(z_TE, dim=1)
    expected = x.new_zeros(())
    for chosen in every:
        likely, left = x.new_ones(()), torch.ones_like(shares)
        for k in range(chosen.shape[1]):
            drawn = chosen[:, k : k + 1]
            likely = likely * ((shares.gather(1, drawn)) / (shares * left).sum(1, True)).prod()
            left = left.scatter(1, drawn, 0.0)
        probs = torch.zeros_like(shares).scatter(1, chosen, shares.gather(1, chosen))
        expected = expected + likely * toy.whole(toy.losses(probs))
    return [*torch.autograd.grad(expected, [router.weight, x])]


@pytest.mark.parametrize(("tokens", "topk"), [(2, 1), (1, 2)])
def test_the_mean_of_all_estimates_is_the_gradient(tokens: int, topk: int, parse) -> None:
    router, toy = made(parse, topk), Toy(tokens)
    every = choices(tokens, topk)
    mean, total = [torch.zeros_like(router.weight), torch.zeros_like(toy.x)], 0.0
    for chosen in every:
        grads, likely = estimate(router, toy, chosen)
        mean = [m + likely * g for m, g in zip(mean, grads, strict=True)]
        total += float(likely)
    assert total == pytest.approx(1, abs=1e-12)
    for found, expected in zip(mean, exact(router, toy, every), strict=True):
        assert expected.abs().max() > 1e-3
        assert (found - expected).abs().max() < 1e-12
    # And what is left of it without rewards is another.
    off = made(parse, topk, "--grove-reinforce-coeff 0")
    off.load_state_dict(router.state_dict())
    without = sum(likely * grads[0] for grads, likely in (estimate(off, toy, c) for c in every))
    assert (without - mean[0]).abs().max() > 1e-3


def test_a_baseline_that_knows_the_loss_makes_it_vary_less(parse) -> None:
    router, toy = made(parse, 1), Toy(1)
    policy = router.get_submodule("selector_reinforce")
    every = choices(1, 1)
    expected = exact(router, toy, every)[0]
    losses = []
    for chosen in every:
        _, likely = estimate(router, toy, chosen)
        shares = torch.softmax(router.gating(toy.x).reshape(1, -1), dim=1)
        probs = torch.zeros_like(shares).scatter(1, chosen, shares.gather(1, chosen))
        losses.append(likely * toy.losses(probs).sum())
    variances = []
    policy.weight.data.zero_()
    for baseline in (0.0, float(sum(losses))):
        policy.bias.data.fill_(baseline)
        found = [estimate(router, toy, chosen) for chosen in every]
        variances.append(sum(p * (g[0] - expected).square().sum() for g, p in found))
    assert variances[1] < 0.9 * variances[0]


def test_the_baseline_learns_what_the_loss_is(parse) -> None:
    router, toy = made(parse, 1, "--grove-reinforce-baseline-coeff 0.25"), Toy(4)
    policy = router.get_submodule("selector_reinforce")
    x = toy.x.clone().requires_grad_()
    router.carried = Carried(reward=x.new_zeros(4, 1, 4))
    probs, _ = router(x)
    losses = toy.losses(probs)
    attached = Reward.apply(losses, router.handed.reward, slice(0, 4))
    wanted = [policy.weight, policy.bias]
    found = torch.autograd.grad(toy.whole(attached), wanted, retain_graph=True)
    baseline = policy.baseline(toy.x.reshape(4, -1))
    error = 0.25 * (toy.weights * (baseline - losses.detach()[0]).square()).sum()
    for mine, theirs in zip(found, torch.autograd.grad(error, wanted), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-14)


def test_experts_are_drawn_as_often_as_the_policy_says(parse) -> None:
    router = made(parse, 2)
    policy = router.steps.selector
    draws = 40_000
    z = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    torch.manual_seed(0)
    chosen = policy.choose(z.expand(draws, -1), Seen(training=True))
    for pair in ((i, j) for i in range(4) for j in range(4) if i != j):
        wanted = torch.tensor([pair])
        likely = float(log_probability(z.unsqueeze(0), wanted).exp())
        often = float((chosen == wanted).all(1).double().mean())
        assert often == pytest.approx(likely, abs=4 * (likely / draws) ** 0.5)


def test_evaluation_takes_the_best(parse) -> None:
    z = torch.randn(9, EXPERTS)
    chosen = made(parse, 2).steps.selector.choose(z, Seen(training=False))
    assert torch.equal(chosen, z.topk(2, dim=1).indices)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rewards_keep_16_bits_on_their_way(dtype: torch.dtype) -> None:
    """Layers hand them on in the dtype of hidden states."""
    losses = torch.linspace(0.1, 12, 6).reshape(1, 6).requires_grad_()
    reward = torch.zeros(6, 1, 4, dtype=dtype, requires_grad=True)
    log, baseline = (torch.zeros(6, requires_grad=True) for _ in range(2))
    handed = Learn.apply(reward, log, baseline, (1.0, 0.5))
    (0.37 * Reward.apply(losses, handed, slice(0, 6))).sum().backward()
    assert torch.allclose(log.grad, 0.37 * losses.detach()[0], rtol=2**-15)
    assert torch.allclose(baseline.grad, -0.37 * losses.detach()[0], rtol=2**-15)
    assert torch.equal(losses.grad, torch.full_like(losses, 0.37))


def test_rewards_survive_a_detour_in_bf16() -> None:
    """Columns of fp32 that are cast on their way, as beside experts in bf16."""
    losses = torch.linspace(0.1, 12, 6).reshape(1, 6).requires_grad_()
    reward = torch.zeros(6, 1, 4, requires_grad=True)
    log, baseline = (torch.zeros(6, requires_grad=True) for _ in range(2))
    handed = Learn.apply(reward, log, baseline, (1.0, 0.5)).bfloat16().float()
    (0.37 * Reward.apply(losses, handed, slice(0, 6))).sum().backward()
    assert torch.allclose(log.grad, 0.37 * losses.detach()[0], rtol=2**-15)


def test_a_frozen_policy_draws_nothing(parse) -> None:
    router = made(parse, 2)
    x = Toy(4).x
    router.eval()
    best = router(x)[1]
    router.train().freeze()
    router.carried = Carried(reward=x.new_zeros(4, 1, 4))
    assert torch.equal(router(x)[1], best)


def test_a_model_that_brings_no_losses_back_is_refused(parse) -> None:
    router = made(parse, 2)
    with pytest.raises(ValueError, match="reinforce\\) got nothing beside the hidden states"):
        router(Toy(2).x)
    router.eval()(Toy(2).x)
