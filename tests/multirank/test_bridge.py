"""The bridge on ranks: the names of a real model, and Megatron-Bridge's own conversion code.

MEGATRON_BRIDGE names a folder into which the wheel was unpacked; nothing of it is installed:

    pip download --no-deps megatron-bridge==0.6.2
    unzip -d FOLDER megatron_bridge-0.6.2-py3-none-any.whl
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from grove_megatron.bridge.names import table
from grove_megatron.checkpoint.hf_config import architecture_of, config_of, read_config
from grove_megatron.checkpoint.units import hf_shapes
from grove_megatron.model.architecture import Architecture
from tests.ranks import Ranks
from tests.unit.checkpoint.architectures import GROVE

CASES = "tests.multirank.bridge_cases"
SOURCE = Path(os.environ.get("MEGATRON_BRIDGE", ""))

with_source = pytest.mark.skipif(
    not (SOURCE / "megatron" / "bridge").is_dir() or "MEGATRON_BRIDGE" not in os.environ,
    reason="MEGATRON_BRIDGE names no folder with an unpacked megatron-bridge wheel",
)

LAYOUTS: dict[str, dict[str, int]] = {
    "one rank": {},
    "EP 2": {"expert_model": 2},
    "TP 2": {"tensor_model": 2, "expert_tensor": 2},
    "EP 2, PP 2": {"expert_model": 2, "pipeline_model": 2},
    "EP 2, TP 2": {"expert_model": 2, "tensor_model": 2, "expert_tensor": 1},
    "EP 4": {"expert_model": 4},
}


def ranks_of(sizes: dict[str, int]) -> int:
    dense = sizes.get("tensor_model", 1) * sizes.get("pipeline_model", 1)
    experts = sizes.get("expert_model", 1) * sizes.get("expert_tensor", 1)
    return max(dense, experts * sizes.get("pipeline_model", 1))


def test_every_name_in_a_model_has_one_row_and_every_tensor_comes_once(
    ranks: Ranks, golden_folder: Path, tmp_path: Path
) -> None:
    target = f"{CASES}:names_of_a_model"
    job = ranks.run(1, target, str(tmp_path), str(golden_folder), folder=tmp_path)
    (found,) = job.check().results()
    produced: Counter[str] = Counter()
    for name in found["saved"]:
        matches = [m for row in table() if (m := row.hf_names(name)) is not None]
        assert len(matches) == 1, name
        produced.update(matches[0])
    architecture = architecture_of(read_config(golden_folder), "the model")
    biases = {f"model.layers.{i}.mlp.expert_bias" for i in range(architecture.num_layers)}
    assert produced == Counter(hf_shapes(architecture).keys() | biases)
    # One rank: its numbers are those of the whole model.
    assert {n for n in found["saved"] if not n.endswith(".expert_bias")} == {*found["parameters"]}


def converted(layout: str, model: Path, ranks: Ranks, folder: Path) -> list[dict[str, Any]]:
    paths = (str(folder), str(SOURCE), str(model))
    sizes = LAYOUTS[layout]
    job = ranks.run(
        ranks_of(sizes), f"{CASES}:there_and_back", *paths, sizes, folder=folder, timeout=600
    )
    return job.check().results()


def assert_unchanged(found: dict[str, Any]) -> None:
    assert found["parameters"] > 20
    assert found["wrong parameters"] == []
    assert found["twice"] == found["missing"] == found["wrong tensors"] == []


@with_source
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_comes_in_and_goes_out_unchanged(
    layout: str, ranks: Ranks, golden_folder: Path, tmp_path: Path
) -> None:
    config = read_config(golden_folder)
    for found in converted(layout, golden_folder, ranks, tmp_path):
        assert_unchanged(found)
        # What it was not told, it does not say.
        for key in config.keys() - {"intermediate_size"}:
            assert found["config"][key] == config[key], key


def random_model(architecture: Architecture, folder: Path) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    config = config_of(architecture, None, "float32")
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {n: torch.randn(s, generator=generator) for n, s in hf_shapes(architecture).items()}
    save_file(tensors, folder / "model.safetensors")


@with_source
@pytest.mark.parametrize("layout", ["one rank", "EP 2"])
def test_so_does_one_with_dense_layers_expert_biases_and_tied_embeddings(
    layout: str, ranks: Ranks, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    random_model(GROVE, model)
    for found in converted(layout, model, ranks, tmp_path / "ranks"):
        assert_unchanged(found)
        assert found["config"]["small_experts_weight"] == GROVE.adjugate_scale
        assert found["config"]["mlp_only_layers"] == [1]


@with_source
def test_mistakes_are_refused_by_name(ranks: Ranks, golden_folder: Path, tmp_path: Path) -> None:
    paths = (str(tmp_path), str(SOURCE), str(golden_folder))
    job = ranks.run(1, f"{CASES}:refusals", *paths, folder=tmp_path)
    (found,) = job.check().results()
    assert found["stacked"].startswith("grove_kernel (auto) stacks the experts")
    assert found["scale"].startswith("--grove-adjugate-scale (5.0) is above groups / experts")
    assert found["stranger"].startswith("stranger cannot be converted")
    assert "adjugate_experts.adapter.weight is an adapter of an adjugate" in found["adapter"]
    tensor = "model.layers.1.mlp.chunk_experts.5.up_proj.weight"
    assert found["lacking"] == f"{tensor} is not in the checkpoint; name a complete one"
    assert found["hooks are shared"]
    assert found["changed"] == []
    assert (found["provider"], found["layers"]) == ("GroveMoeModelProvider", "GroveMoELayer")
    assert found["dotted"]
    assert found["written"] == ["GroveMoeForCausalLM"]
