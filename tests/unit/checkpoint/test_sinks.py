"""Files of the size asked for, in both formats, with every tensor in one of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from grove_megatron.checkpoint.checked import Plan
from grove_megatron.checkpoint.hf_files import INDEX, SINGLE, HfWeights
from grove_megatron.checkpoint.layout import RELEASE
from grove_megatron.checkpoint.megatron_weights import MegatronWeights
from grove_megatron.checkpoint.sinks import HfSink, MegatronSink
from grove_megatron.checkpoint.torch_dist import TorchDistReader
from grove_megatron.checkpoint.units import hf_shapes, units
from grove_megatron.model.architecture import Architecture

from .architectures import DENSE, GROVE, MIXED
from .stored_weights import random_weights

PLAIN = replace(MIXED, moe_layers=(True, True, True))
MODELS = {
    "dense": DENSE,
    "mixed": MIXED,
    "plain": PLAIN,
    "grove": replace(GROVE, moe_layers=(True, True, True)),
    "mixed-grove": GROVE,
}


def plans_of(tensors: dict[str, Tensor]) -> dict[str, Plan]:
    return {name: Plan(tuple(t.shape), t.dtype) for name, t in tensors.items()}


def fill(sink: HfSink | MegatronSink, tensors: dict[str, Tensor], folder: Path) -> None:
    records: dict[str, Any] = {}
    for part in sink.parts:
        (folder / part.file).parent.mkdir(parents=True, exist_ok=True)
        written = sink.write(part, folder / part.file, tensors.__getitem__)
        # As they come back from the journal.
        records[part.file] = json.loads(json.dumps(written))
    if isinstance(sink, MegatronSink):
        sink.finish(folder, records, {"iteration": 0})
    else:
        sink.finish(folder, records)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


# --------------------------------------------------------------------------------- Hugging Face


@pytest.mark.parametrize("limit", [1, 700, 5000, 10**9])
@pytest.mark.parametrize("name", MODELS)
def test_shards_hold_every_tensor_and_no_more_than_asked(
    name: str, limit: int, tmp_path: Path
) -> None:
    tensors = random_weights(MODELS[name])
    sink = HfSink(plans_of(tensors), limit, fused=False)
    fill(sink, tensors, tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert {f.name for f in files} == {part.file for part in sink.parts}
    loaded = {file.name: load_file(file) for file in files}
    for held in loaded.values():
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= limit
    assert_same({n: t for held in loaded.values() for n, t in held.items()}, tensors)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["weight_map"] == {n: file for file, held in loaded.items() for n in held}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    weights = HfWeights(tmp_path)
    assert weights.problems == []
    assert_same({n: weights.read(n) for n in weights.infos()}, tensors)


def test_shards_are_named_as_hugging_face_names_them(tmp_path: Path) -> None:
    plans = {name: Plan((1,), torch.float32) for name in "abc"}
    assert [p.file for p in HfSink(plans, 100, False).parts] == [SINGLE]
    assert [(p.file, p.names) for p in HfSink(plans, 8, False).parts] == [
        ("model-00001-of-00002.safetensors", ("a", "b")),
        ("model-00002-of-00002.safetensors", ("c",)),
    ]


@pytest.mark.parametrize("limit", [1, 10**9])
def test_fused_experts_are_two_tensors_of_a_layer(limit: int, tmp_path: Path) -> None:
    tensors = random_weights(MIXED)
    fill(HfSink(plans_of(tensors), limit, fused=True), tensors, tmp_path)
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    prefix = "model.layers.2.mlp.experts"
    assert {n for n in weight_map if prefix in n} == {
        f"{prefix}.gate_up_proj",
        f"{prefix}.down_proj",
    }
    held = load_file(tmp_path / weight_map[f"{prefix}.gate_up_proj"])[f"{prefix}.gate_up_proj"]
    assert held.shape == (6, 2 * 20, 24)
    assert torch.equal(held[4, :20], tensors[f"{prefix}.4.gate_proj.weight"])
    assert torch.equal(held[4, 20:], tensors[f"{prefix}.4.up_proj.weight"])
    down = load_file(tmp_path / weight_map[f"{prefix}.down_proj"])[f"{prefix}.down_proj"]
    assert torch.equal(down[5], tensors[f"{prefix}.5.down_proj.weight"])
    weights = HfWeights(tmp_path)
    assert_same({n: weights.read(n) for n in weights.infos()}, tensors)


def test_fused_experts_have_one_dtype() -> None:
    tensors = random_weights(MIXED)
    odd = "model.layers.2.mlp.experts.4.gate_proj.weight"
    plans = plans_of(tensors) | {odd: Plan((20, 24), torch.bfloat16)}
    assert HfSink(plans, 10**9, fused=False).problems() == []
    (problem,) = HfSink(plans, 10**9, fused=True).problems()
    assert problem.startswith("model.layers.2.mlp.experts.gate_up_proj would have dtypes")


# ------------------------------------------------------------------------------------- Megatron


def megatron_sink(
    architecture: Architecture, plans: dict[str, Plan], file_bytes: int = 10**9
) -> MegatronSink:
    return MegatronSink(plans, list(units(architecture)), file_bytes)


@pytest.mark.parametrize("limit", [1, 5000, 10**9])
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_gives_back_every_tensor(name: str, limit: int, tmp_path: Path) -> None:
    tensors = random_weights(MODELS[name], torch.bfloat16)
    sink = megatron_sink(MODELS[name], plans_of(tensors), limit)
    fill(sink, tensors, tmp_path)
    assert [p for part in sink.parts for p in part.names] == list(tensors)
    reader = TorchDistReader(tmp_path / RELEASE)
    weights = MegatronWeights(reader, replace(MODELS[name], expert_bias=False))
    assert weights.architecture == MODELS[name]
    assert weights.problems() == []
    assert set(weights.infos()) == set(tensors)
    assert_same({n: weights.read(n) for n in tensors}, tensors)
    assert {n: i.shape for n, i in weights.infos().items()} == hf_shapes(MODELS[name])


def test_files_are_about_as_large_as_asked(tmp_path: Path) -> None:
    tensors = random_weights(PLAIN)
    sink = megatron_sink(PLAIN, plans_of(tensors), 20_000)
    for part in sink.parts:
        size = sum(tensors[name].nbytes for name in part.names)
        assert size <= 20_000
    assert len(sink.parts) == len({part.file for part in sink.parts}) > 3
    assert sum(len(part.names) for part in sink.parts) == len(tensors)


def test_a_norm_of_megatrons_own_layers_is_there_under_both_keys(tmp_path: Path) -> None:
    tensors = random_weights(PLAIN)
    fill(megatron_sink(PLAIN, plans_of(tensors)), tensors, tmp_path)
    reader = TorchDistReader(tmp_path / RELEASE)
    expected = tensors["model.layers.1.post_attention_layernorm.weight"]
    for key in (
        "decoder.layers.pre_mlp_layernorm.weight",
        "decoder.layers.mlp.linear_fc1.layer_norm_weight",
    ):
        assert torch.equal(reader.region(key, (1,), (24,)), expected)


def test_a_grove_layer_has_one_key_for_its_norm(tmp_path: Path) -> None:
    grove = MODELS["grove"]
    tensors = random_weights(grove)
    fill(megatron_sink(grove, plans_of(tensors)), tensors, tmp_path)
    keys = TorchDistReader(tmp_path / RELEASE).tensors
    assert [key for key in keys if "mlp" in key and "norm" in key] == [
        "decoder.layers.pre_mlp_layernorm.weight"
    ]


def test_every_tensor_that_breaks_the_one_dtype_of_an_entry_is_named() -> None:
    tensors = random_weights(PLAIN)
    odd = "model.layers.2.mlp.experts.4.gate_proj.weight"
    tensors[odd] = tensors[odd].to(torch.bfloat16)
    (problem,) = megatron_sink(PLAIN, plans_of(tensors)).problems()
    assert problem == (
        f"{odd} has dtype bfloat16 and the other tensors of "
        "decoder.layers.mlp.experts.experts.linear_fc1.weight have float32; choose one with --dtype"
    )


def test_the_tracker_names_the_release(tmp_path: Path) -> None:
    tensors = random_weights(DENSE)
    fill(megatron_sink(DENSE, plans_of(tensors)), tensors, tmp_path)
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert TorchDistReader(tmp_path / RELEASE).common() == {"iteration": 0}
