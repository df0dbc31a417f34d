"""Expert modules of other forms, with weights under their authors' names, beside the formulas."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from grove_megatron.verify_layer.layout import Layout
from grove_megatron.verify_layer.settings import Settings
from grove_megatron.verify_layer.system import System
from grove_megatron.verify_layer.systems import find_system

HIDDEN, WIDTH, EXPERTS, SUBLAYERS, EPS = 5, 7, 3, 2, 1e-3
CONFIG = {
    "hidden_size": HIDDEN,
    "num_experts": EXPERTS,
    "top_k": 2,
    "expert_intermediate_size": WIDTH,
    "expert_hidden": WIDTH,
    "weight": 1.0,
    "vocab": 9,
    "base_sublayers": SUBLAYERS,
    "layernorm_eps": EPS,
    "activation": "relu",
    "num_tokens": 4,
    "variants": {"layer.safetensors": {"threshold": 0.5, "capacity": 4}},
}
Weights = dict[str, Tensor]


def of_hash(w: Weights, e: int, x: Tensor) -> Tensor:
    """ParlAI's, relu between two linear layers with biases."""
    h = F.relu(x @ w[f"linears1.{e}.weight"].T + w[f"linears1.{e}.bias"])
    return h @ w[f"linears2.{e}.weight"].T + w[f"linears2.{e}.bias"]


def of_st_moe(w: Weights, e: int, x: Tensor) -> Tensor:
    """The value is the first half, the gate the second."""
    one = f"experts.experts.{e}.net"
    h = x @ w[f"{one}.0.weight"].T + w[f"{one}.0.bias"]
    value, gate = h[:, :WIDTH], h[:, WIDTH:]
    gelu = 0.5 * gate * (1 + torch.erf(gate / 2**0.5))
    return (value * gelu * w[f"{one}.1.mult_bias"]) @ w[f"{one}.2.weight"].T + w[f"{one}.2.bias"]


def of_base(w: Weights, e: int, x: Tensor) -> Tensor:
    """A residual stack, each with its norm in front; what it adds."""
    given = x
    for s in range(SUBLAYERS):
        one = f"experts.{e}.{s}"
        centred = x - x.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
        normed = normed * w[f"{one}.norm.weight"] + w[f"{one}.norm.bias"]
        h = F.relu(normed @ w[f"{one}.ff1.weight"].T + w[f"{one}.ff1.bias"])
        x = x + h @ w[f"{one}.ff2.weight"].T + w[f"{one}.ff2.bias"]
    return x - given


FORMS = {"hash": of_hash, "st_moe": of_st_moe, "base": of_base}


def described(name: str) -> System:
    describe = find_system(name, Path("x"))
    assert describe is not None
    settings = Settings(CONFIG)
    system = describe(settings)
    assert settings.problems == []
    return system


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("first", [0, 1])
def test_a_ranks_experts_compute_the_authors_formula(
    name: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    system, form = described(name), FORMS[name]
    layout = Layout.of(system.parameters)
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    w = {name: random(*shape) for name, shape in layout.shapes.items()}
    # From the second rank on, and an expert without a token.
    local, counts = EXPERTS - first, [4, 0, 2][: EXPERTS - first]
    x, probs = random(sum(counts), HIDDEN), random(sum(counts))
    parts = torch.split(x, counts)
    expected = torch.cat([form(w, first + e, rows) for e, rows in enumerate(parts)])
    expected = expected * probs[:, None]
    r = random(*expected.shape).detach()
    theirs = torch.autograd.grad((expected * r).sum(), [x, probs, *w.values()], allow_unused=True)

    assert system.experts is not None
    made = system.experts(local, SimpleNamespace(params_dtype=torch.float64), pg_collection=None)
    places = _places(layout, made, first)
    flat = layout.flat(w).detach()
    for parameter, index in places:
        parameter.data.copy_(flat[index])
    y, bias = made(x, torch.tensor(counts), probs)
    assert bias is None
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)
    ours = torch.autograd.grad((y * r).sum(), [x, probs, *(p for p, _ in places)])
    torch.testing.assert_close(ours[:2], theirs[:2], rtol=0, atol=1e-12)
    grads = torch.zeros(layout.size, dtype=torch.float64)
    for (_, index), grad in zip(places, ours[2:], strict=True):
        grads[index] = grad
    for found, grad in zip(layout.named(grads).values(), theirs[2:], strict=True):
        assert_same(found, grad)


def assert_same(found: Tensor, grad: Tensor | None) -> None:
    torch.testing.assert_close(
        found, torch.zeros_like(found) if grad is None else grad, rtol=0, atol=1e-12
    )


def _places(layout: Layout, made: Any, first: int) -> list[tuple[Any, Tensor]]:
    found = []
    for name, parameter in made.named_parameters():
        _, local, own = name.split(".", 2)
        found.append((parameter, layout.entries[f"experts.{first + int(local)}.{own}"]))
    here = {f"experts.{first + e}." for e in range(len(made.local_experts))}
    assert len(found) == sum(name.startswith((*here,)) for name in layout.entries)
    return found


def test_megatron_sees_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    make: Callable[..., Any] | None = described("st_moe").experts
    assert make is not None
    made = make(2, SimpleNamespace(params_dtype=torch.float32), pg_collection=None, name="x")
    assert all(parameter.allreduce is False for parameter in made.parameters())
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}
