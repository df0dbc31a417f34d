"""Selectors and capacities where logits, tokens or experts are not as one would like them."""

import pytest
import torch
from torch import Tensor

from grove_megatron.parts import registry
from grove_megatron.parts.part import Part
from tests.unit.parts.test_parts import (
    HIDDEN,
    VOCABULARY,
    carried_of,
    config_of,
    make_router,
    name_of,
)

pytestmark = pytest.mark.usefixtures("on_one_rank")
PARTS = [*registry.of_slot("selector"), *registry.of_slot("drop"), *registry.of_slot("gate")]


def logits(kind: str, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(tokens, 1, 12, dtype=torch.float64, generator=generator)
    if kind == "one":
        z[..., 3] += 1e4
    if kind == "same":
        z.zero_()
    if kind == "ties":
        z = z.bfloat16().mul(2).round().double()
    if kind == "huge":
        z *= 1e6
    return z


@pytest.mark.parametrize("kind", ["one", "same", "ties", "huge"])
@pytest.mark.parametrize("tokens", [1, 5, 13, 24])
@pytest.mark.parametrize("part", PARTS, ids=name_of)
@pytest.mark.parametrize("training", [True, False])
def test_every_token_is_routed_or_dropped_and_weights_are_finite(
    part: Part,
    tokens: int,
    kind: str,
    training: bool,
    parse,
) -> None:
    router = make_router(config_of(part.tried, parse, groups=True)).train(training)
    router.carried = carried_of(router, tokens, 1)
    router._tokens = torch.randn(tokens, 1, HIDDEN, dtype=torch.float64)
    z = logits(kind, tokens)[..., : router.num_experts].requires_grad_()
    if router.num_experts > 12:
        z = torch.cat([z, z.detach()[..., : router.num_experts - 12]], dim=-1)
    padding = torch.zeros(tokens, 1, dtype=torch.bool)
    padding[::4] = tokens > 4
    probs, chosen = router.routing(z, padding)
    assert probs.isfinite().all()
    assert (probs >= 0).all()
    assert not (probs * ~chosen).any()
    if probs.requires_grad:
        probs.sum().backward()
    there = ~padding.reshape(-1)
    counts = chosen[there].sum(1)
    topk = router.config.moe_router_topk
    if part.slot == "drop":
        assert (counts <= topk).all()
    elif part.any_number:
        each = max(int(there.sum()) * topk // 12, 1)
        assert (chosen[there].sum(0) == each).all()
    else:
        assert (counts == topk).all()


@pytest.mark.parametrize("name", ["base", "expert_choice"])
@pytest.mark.parametrize("tokens", [12, 13, 30, 100])
def test_experts_are_balanced_to_the_token(name: str, tokens: int, parse) -> None:
    (part,) = [p for p in registry.of_slot("selector") if p.name == name]
    router = make_router(config_of(part.tried, parse, groups=True)).train()
    _, chosen = router.routing(logits("one", tokens))
    load = chosen.sum(0)
    assert int(load.max()) - int(load.min()) <= (tokens % 12 > 0) * (name == "base")


def test_ids_that_a_table_does_not_have_are_an_error(parse) -> None:
    router = make_router(config_of("--grove-router-selector hash", parse, groups=True))
    router.carried = carried_of(router, 4, 1)
    router.carried.ids[0] = 200.0
    with pytest.raises(IndexError):
        router(torch.zeros(4, 1, HIDDEN, dtype=torch.float64))
    assert VOCABULARY < 200 + 200 * 256
