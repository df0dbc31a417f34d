"""What the parts of MoE++ have to be beside their references."""

from types import SimpleNamespace

import pytest
import torch

from grove_megatron.model.selection import ffn_per_token
from grove_megatron.parts.compose import best
from grove_megatron.parts.drop.capacity import Capacity
from grove_megatron.parts.local.zero import Shared
from grove_megatron.parts.logits.residual import GatingResidual
from grove_megatron.parts.losses.heterogeneous import HeterogeneousLoss
from grove_megatron.parts.part import Balance, Logits, Routed, Seen
from tests.unit.training.command_lines import parsed

CONFIG = SimpleNamespace(params_dtype=torch.float64, perform_initialization=False)
SETTINGS = [(8, 4, 0.75, 0.6), (16, 4, 0.75, 0.75), (32, 8, 0.75, 0.75), (8, 4, 1.0, 2 / 3)]


def test_a_map_of_zeros_is_no_residual() -> None:
    z, before = torch.randn(2, 50, 6, dtype=torch.float64)
    step = GatingResidual(6, CONFIG)
    step.weight.data.zero_()
    for previous in (before, None):
        assert torch.equal(step(Logits(z_TE=z), Seen(previous_TE=previous)).z_TE, z)


def test_the_first_layers_map_has_a_gradient_of_zeros() -> None:
    step = GatingResidual(6, CONFIG)
    step.weight.data.normal_()
    step(Logits(z_TE=torch.randn(5, 6, dtype=torch.float64)), Seen()).z_TE.sum().backward()
    assert torch.equal(step.weight.grad, torch.zeros(6, 6, dtype=torch.float64))


def test_a_token_with_zero_experts_alone_weighs_nothing_and_has_finite_gradients() -> None:
    weights = torch.tensor([[0.5, 0.1], [0.5, 0.1]], dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[4, 5], [1, 5]])
    shared = Shared(2)(weights, index, 6)
    assert shared.tolist() == [[0, 0], [1, 0]]
    shared.sum().backward()
    assert torch.equal(weights.grad, torch.zeros(2, 2, dtype=torch.float64))


def gradient_at(load: list[int], tokens: int, local: int, tau: float) -> torch.Tensor:
    """Of the loss to the logits, where every token has the same, and experts this load."""
    columns = len(load)
    counted = torch.zeros(tokens, columns, dtype=torch.bool)
    for i, n in enumerate(load):
        counted[:n, i] = True
    logits = torch.randn(columns, dtype=torch.float64).requires_grad_()
    distribution = logits.softmax(0).expand(tokens, columns)
    routed = Routed(index_TK=counted.long(), selected_TE=counted, probs_TE=counted, map_TE=counted)
    balance = Balance(
        seen=Seen(),
        logits=Logits(z_TE=distribution),
        routed=routed,
        sent=routed,
        distribution_TE=distribution,
        counted_TE=counted,
        per_token=2,
    )
    HeterogeneousLoss(local, tau, 1.0)(balance).backward()
    return logits.grad


@pytest.mark.parametrize("tau", [0.25, 0.5, 2.0])
def test_the_loss_is_stationary_where_load_is_as_1_over_eta(tau: float) -> None:
    # 4 routed experts, 2 local ones with 1 / tau times their tokens.
    balanced = [40] * 4 + [int(40 / tau)] * 2
    assert gradient_at(balanced, 400, 2, tau).abs().max() < 1e-15
    assert gradient_at([40] * 6, 400, 2, tau).abs().max() > 1e-3


@pytest.mark.parametrize(("experts", "local", "tau", "share"), SETTINGS)
def test_the_share_of_ffns(experts: int, local: int, tau: float, share: float) -> None:
    """0.6, 0.75, 0.75 of the paper's settings; of a uniform router N / (N + C)."""
    model = SimpleNamespace(num_experts=experts, local_experts=local, topk=2, local_tau=tau)
    assert ffn_per_token(model) / 2 == pytest.approx(share, rel=1e-12)
    if tau == 1:
        chosen = best(torch.rand(40000, experts + local), 2, True)
        assert float((chosen < experts).double().mean()) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(("experts", "local", "tau", "share"), SETTINGS)
def test_the_capacities_take_gamma_times_all_pairs(
    experts: int, local: int, tau: float, share: float
) -> None:
    tokens, columns = 5000, experts + local
    flags = f"--moe-router-topk 2 --moe-expert-capacity-factor 1.1 --grove-local-tau {tau}"
    step = Capacity(parsed(f"{flags} --grove-zero-experts {local}"))
    limits = step.limits(torch.tensor([tokens]), columns)[0].tolist()
    assert len(limits) == columns
    assert 0 <= sum(limits) - 1.1 * 2 * tokens < columns
    assert sum(limits[:experts]) / sum(limits) == pytest.approx(share, abs=1e-3)
