"""TransformerEngine's grouped experts and the local ones are the same experts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.layers import (
    TOKENS,
    assert_close,
    by_the_paper,
    grove_layer_of,
    load,
    run,
    tokens,
    weights,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("transformer_engine", "one_gpu", "exact_fp32"),
]

# Of the norm of a tensor; see test_layer.py. Two layers are each as far from the paper.
TOLERANCE = 1.2e-2
PREFIX = "mlp."
IMPLEMENTATIONS = ("local", "transformer_engine")
DIRECTIONS = pytest.mark.parametrize(
    ("source", "target"), [IMPLEMENTATIONS, IMPLEMENTATIONS[::-1]], ids=lambda name: name
)


def layer_of(implementation: str, **settings: Any) -> torch.nn.Module:
    """One with weights of its own: the random streams go on from layer to layer."""
    # TEGroupedMLP, and not single linear layers of TransformerEngine.
    engine = {"transformer_impl": implementation, "moe_grouped_gemm": True}
    given = engine if implementation == "transformer_engine" else {}
    return grove_layer_of(torch.bfloat16, **given, **settings)


def assert_same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


def test_the_experts_are_transformer_engine_s() -> None:
    layer = layer_of("transformer_engine")
    for experts in (layer.experts, layer.adjugate_experts):
        assert type(experts).__name__ == "TEGroupedMLP"
    assert not layer.in_one_pass


@DIRECTIONS
def test_with_the_same_weights_both_are_the_layer_of_the_paper(source: str, target: str) -> None:
    first, second = layer_of(source), layer_of(target)
    load(second, weights(first))
    assert_same(first, second)
    x, upstream = tokens(TOKENS, first.config.hidden_size, torch.bfloat16)
    expected = by_the_paper(first, x, upstream)
    found = [run(layer, x, upstream) for layer in (first, second)]
    for results in found:
        assert_close(results, expected, TOLERANCE)
    assert_close(*found, 1.5 * TOLERANCE)


@DIRECTIONS
def test_a_checkpoint_of_either_is_one_of_the_other(
    source: str, target: str, tmp_path: Path
) -> None:
    from megatron.core import dist_checkpointing

    first, second = layer_of(source), layer_of(target)
    before = weights(second)
    assert not torch.equal(before["router.weight"], weights(first)["router.weight"])
    dist_checkpointing.save(first.sharded_state_dict(prefix=PREFIX), str(tmp_path))
    loaded = dist_checkpointing.load(second.sharded_state_dict(prefix=PREFIX), str(tmp_path))
    second.load_state_dict({n.removeprefix(PREFIX): v for n, v in loaded.items()}, strict=True)
    assert_same(first, second)
    x, upstream = tokens(TOKENS, first.config.hidden_size, torch.bfloat16)
    expected = by_the_paper(first, x, upstream)
    for layer in (first, second):
        assert_close(run(layer, x, upstream), expected, TOLERANCE)


@DIRECTIONS
def test_moments_of_either_are_those_of_the_other(source: str, target: str, tmp_path: Path) -> None:
    from megatron.core import dist_checkpointing

    first, second = layer_of(source), layer_of(target)
    dist_checkpointing.save(moments(first, -2.0), str(tmp_path))
    loaded = dist_checkpointing.load(moments(second, 0.0), str(tmp_path))
    names = {name.removeprefix(PREFIX): value for name, value in loaded.items()}
    missing, unexpected = second.load_state_dict(names, strict=False)
    assert not unexpected
    assert all("_extra_state" in name for name in missing)
    expected = {name: -2 * weight for name, weight in weights(first).items()}
    found = weights(second)
    assert found.keys() == expected.keys()
    for name, moment in expected.items():
        assert torch.equal(found[name], moment), name


def moments(layer: torch.nn.Module, factor: float) -> dict[str, Any]:
    """Entries of an optimizer state that is ``factor`` times the weights, by their names."""
    from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor

    return {
        name: make_sharded_optimizer_tensor(
            entry, factor * entry.data.detach(), "optimizer.state.exp_avg"
        )
        for name, entry in layer.sharded_state_dict(prefix=PREFIX).items()
        if "_extra_state" not in name
    }
