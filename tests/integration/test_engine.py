"""A Grove model of TransformerEngine's modules, as far as it can be made without a GPU.

Skips where TransformerEngine is not installed. What it computes is for tests/gpu.
"""

import json
import sys
from typing import Any

import pytest

from tests.integration.launching import launch

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """What models of every implementation are made of; see engine_job.py."""
    done = launch([sys.executable, "-m", "tests.integration.engine_job"])
    assert done.code == 0, done.output
    found: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    if not found:
        pytest.skip("needs TransformerEngine")
    return found


@pytest.mark.parametrize(
    ("engine", "experts"), [("grouped", "TEGroupedMLP"), ("one by one", "SequentialMLP")]
)
def test_the_layer_is_groves_and_all_else_transformer_engines(
    engine: str, experts: str, models: dict[str, Any]
) -> None:
    found = models[engine]
    classes = {"layer": "GroveMoELayer", "router": "GroveRouter"}
    classes |= {"experts": experts, "adjugates": experts}
    assert classes.items() <= found["classes"].items()
    assert found["engine"] == ["last norm", "norm"]
    assert models["local"]["engine"] == []


@pytest.mark.parametrize(
    "engine", ["grouped", "one by one", "delayed", "fp8", "mxfp8", "activations"]
)
def test_checkpoints_have_the_entries_of_the_local_implementation(
    engine: str, models: dict[str, Any]
) -> None:
    expected = models["local"]["entries"]
    assert models[engine]["entries"] == expected
    adjugates = {key: shape for key, shape in expected.items() if ".adjugate_experts." in key}
    # Of the first and the last layer, the matrices of all four groups.
    assert sorted(adjugates.values()) == [[4, 16, 32]] * 2 + [[4, 32, 8]] * 2


@pytest.mark.parametrize("engine", ["grouped", "one by one"])
def test_every_parameter_is_one_of_the_local_implementation(
    engine: str, models: dict[str, Any]
) -> None:
    assert models[engine]["parameters"] == models["local"]["parameters"]
    assert len(models["local"]["parameters"]) > 60


def test_adjugates_are_grouped_as_experts_are_with_their_own_number_and_width(
    models: dict[str, Any],
) -> None:
    experts, adjugates = models["grouped"]["kinds"]
    plain = {"allreduce": [True], "delayed": False, "own hook": False}
    fc = ("linear_fc1", "linear_fc2")
    shapes = {"experts": ([48, 32], [32, 24]), "adjugates": ([16, 32], [32, 8])}
    for kind, number, found in (("experts", 8, experts), ("adjugates", 4, adjugates)):
        for name, shape in zip(fc, shapes[kind], strict=True):
            assert found[name] == {"matrices": number, "shapes": [shape], **plain}


def test_weight_gradients_of_both_are_delayed_and_reduced_by_transformer_engines_hook(
    models: dict[str, Any],
) -> None:
    for kind in models["delayed"]["kinds"]:
        for name in ("linear_fc1", "linear_fc2"):
            assert kind[name]["delayed"]
            assert kind[name]["own hook"]


@pytest.mark.parametrize("recipe", ["fp8", "mxfp8"])
def test_both_pad_their_own_rows_for_fp8(recipe: str, models: dict[str, Any]) -> None:
    assert [kind["padding"] for kind in models[recipe]["kinds"]] == [8, 4]
    assert not any("padding" in kind for kind in models["grouped"]["kinds"])


def test_both_recompute_their_activations(models: dict[str, Any]) -> None:
    assert [kind["recompute"] for kind in models["activations"]["kinds"]] == [True, True]
    assert [kind["recompute"] for kind in models["grouped"]["kinds"]] == [False, False]
