"""A model folder as tensors by name: one file, shards, fused experts; what contradicts is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from grove_megatron.checkpoint.hf_files import INDEX, SINGLE, HfWeights
from grove_megatron.checkpoint.weights import ConversionError

from .safetensors_files import entry, put

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TENSORS = {
    "model.norm.weight": torch.arange(4.0),
    "lm_head.weight": torch.arange(12.0).reshape(3, 4).to(torch.bfloat16),
}


def shard(folder: Path, files: dict[str, dict[str, Tensor]], index: dict[str, str] | None = None):
    for file, tensors in files.items():
        save_file(tensors, folder / file)
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    text = json.dumps({"weight_map": weight_map if index is None else index})
    (folder / INDEX).write_text(text)


def in_two(tensors: dict[str, Tensor] = TENSORS) -> dict[str, dict[str, Tensor]]:
    (first, a), *rest = tensors.items()
    return {A: {first: a}, B: dict(rest)}


def problems(folder: Path) -> list[str]:
    try:
        return [problem.line for problem in HfWeights(folder).problems]
    except ConversionError as error:
        return error.problems


def test_a_single_file_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE)
    weights = HfWeights(tmp_path)
    assert weights.problems == []
    assert {n: (i.shape, i.dtype, i.origin) for n, i in weights.infos().items()} == {
        "model.norm.weight": ((4,), "F32", SINGLE),
        "lm_head.weight": ((3, 4), "BF16", SINGLE),
    }
    for name, tensor in TENSORS.items():
        assert torch.equal(weights.read(name), tensor)


def test_shards_are_read_by_the_index_alone(tmp_path: Path) -> None:
    shard(tmp_path, in_two())
    save_file({"stray": torch.zeros(1)}, tmp_path / "golden.safetensors")
    weights = HfWeights(tmp_path)
    assert weights.problems == []
    assert {n: i.origin for n, i in weights.infos().items()} == {
        "model.norm.weight": A,
        "lm_head.weight": B,
    }
    for name in (*TENSORS, *TENSORS):
        assert torch.equal(weights.read(name), TENSORS[name])


# ---------------------------------------------------------------------------------------- experts


def fused(experts: int = 3, rows: int = 4) -> dict[str, Tensor]:
    prefix = "model.layers.0.mlp.experts"
    gate_up = torch.arange(experts * rows * 5.0).reshape(experts, rows, 5)
    return {
        f"{prefix}.gate_up_proj": gate_up,
        f"{prefix}.down_proj": -torch.arange(experts * 5 * 2.0).reshape(experts, 5, 2),
    }


def test_fused_experts_are_the_tensors_of_single_ones(tmp_path: Path) -> None:
    tensors = fused()
    save_file(tensors, tmp_path / SINGLE)
    weights = HfWeights(tmp_path)
    gate_up, down = tensors.values()
    expected = {}
    for e in range(3):
        name = f"model.layers.0.mlp.experts.{e}"
        expected[f"{name}.gate_proj.weight"] = gate_up[e, :2]
        expected[f"{name}.up_proj.weight"] = gate_up[e, 2:]
        expected[f"{name}.down_proj.weight"] = down[e]
    assert set(weights.infos()) == set(expected)
    for name, tensor in expected.items():
        assert weights.infos()[name].shape == tuple(tensor.shape)
        assert torch.equal(weights.read(name), tensor)


@pytest.mark.parametrize("shape", [(3, 5, 5), (3, 20), (3, 4, 5, 1)])
def test_what_cannot_be_fused_experts_keeps_its_name(shape: tuple[int, ...], tmp_path: Path):
    name = "model.layers.0.mlp.experts.gate_up_proj"
    save_file({name: torch.zeros(shape)}, tmp_path / SINGLE)
    assert set(HfWeights(tmp_path).infos()) == {name}


def test_no_experts_are_no_tensors(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    save_file({name: torch.zeros(0, 4, 5)}, tmp_path / SINGLE)
    assert HfWeights(tmp_path).infos() == {}


def test_an_expert_fused_and_by_itself_is_there_twice(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    save_file(fused() | {name: torch.zeros(2, 5)}, tmp_path / SINGLE)
    (problem,) = problems(tmp_path)
    assert problem.startswith(f"{name} is there twice")
    assert "gate_up_proj" in problem


# ---------------------------------------------------------------------------------------- damage


def test_a_tensor_in_two_shards_is_there_twice(tmp_path: Path) -> None:
    shard(tmp_path, {A: TENSORS, B: {"model.norm.weight": torch.zeros(4)}})
    found = problems(tmp_path)
    assert any(
        p.startswith("model.norm.weight is there twice") and A in p and B in p for p in found
    )


def test_a_tensor_that_is_not_where_the_index_says(tmp_path: Path) -> None:
    index = {"model.norm.weight": A, "lm_head.weight": B, "more": A}
    shard(tmp_path, in_two(), index)
    assert problems(tmp_path) == [
        f"more is not in {tmp_path / A}, where {tmp_path / INDEX} says it is"
    ]


def test_a_tensor_that_the_index_does_not_know(tmp_path: Path) -> None:
    files = in_two()
    files[A]["more"] = torch.zeros(1)
    shard(tmp_path, files, {"model.norm.weight": A, "lm_head.weight": B})
    assert problems(tmp_path) == [f"more in {tmp_path / A} is not in {tmp_path / INDEX}"]


def test_a_single_file_beside_an_index_that_does_not_name_it(tmp_path: Path) -> None:
    shard(tmp_path, in_two())
    save_file(TENSORS, tmp_path / SINGLE)
    (problem,) = problems(tmp_path)
    assert str(tmp_path / SINGLE) in problem


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "7", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 5}}', b"\xff"],
)
def test_a_damaged_index_is_named(text: str | bytes, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE)
    (tmp_path / INDEX).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="is not an index of shards") as raised:
        HfWeights(tmp_path)
    assert str(tmp_path / INDEX) in str(raised.value)


def test_every_damaged_file_is_listed(tmp_path: Path) -> None:
    shard(tmp_path, in_two())
    (tmp_path / A).write_bytes(b"short")
    put(tmp_path / B, {"x": entry("F31", [1], 0, 4), "y": entry("F32", [2], 4, 8)}, bytes(8))
    found = problems(tmp_path)
    assert len(found) == 3
    assert str(tmp_path / A) in found[0]
    assert "x has an unknown dtype" in found[1]
    assert "y, F32 [2], needs 8 bytes" in found[2]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shard(tmp_path, in_two())
    (tmp_path / A).unlink()
    (problem,) = problems(tmp_path)
    assert str(tmp_path / A) in problem


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}\) has neither {INDEX} nor {SINGLE}"):
        HfWeights(tmp_path)


def test_a_file_that_goes_away_is_named(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE)
    weights = HfWeights(tmp_path)
    (tmp_path / SINGLE).unlink()
    with pytest.raises(ValueError, match=r"lm_head\.weight cannot be read") as raised:
        weights.read("lm_head.weight")
    assert str(tmp_path / SINGLE) in str(raised.value)


def test_identity_changes_with_the_files(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE)
    before = HfWeights(tmp_path).identity()
    assert HfWeights(tmp_path).identity() == before
    save_file(TENSORS | {"more": torch.zeros(3)}, tmp_path / SINGLE)
    assert HfWeights(tmp_path).identity() != before
