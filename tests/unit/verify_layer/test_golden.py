"""A folder that is not what its system says is refused, with all that is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from grove_megatron.checkpoint.weights import ConversionError
from grove_megatron.verify_layer.golden import Golden
from tests.layer_folders import write_qwen2_moe

GOLDENS = Path(__file__).parents[2] / "data" / "goldens"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_qwen2_moe(tmp_path / "any")


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(folder / "layer.safetensors")
    edit(tensors)
    save_file(tensors, folder / "layer.safetensors")


def problems(folder: Path, variant: str = "default") -> list[str]:
    with pytest.raises(ConversionError) as refused:
        Golden.read(folder, variant)
    return refused.value.problems


def test_what_a_folder_holds(folder: Path) -> None:
    golden = Golden.read(folder)
    assert golden.x.shape == golden.r.shape == golden.y.shape == (11, 7)
    assert len(golden.weights) == 8 * 3 + 3 + 2
    assert golden.losses.keys() == {"switch_aux", "hf_aux", "z"}
    assert golden.grads[None].keys() == golden.weights.keys() | {"x"}
    assert golden.grads["z"].keys() == {"gate.weight", "x"}
    assert golden.layout.entries["experts.7.linear_fc1.weight"].shape == (10, 7)


def test_everything_wrong_with_tensors_is_said_at_once(folder: Path) -> None:
    def edit(tensors: dict[str, Any]) -> None:
        del tensors["y"], tensors["w.experts.2.up_proj.weight"], tensors["routing_map"]
        del tensors["loss.z"], tensors["grad.x"]
        tensors["w.gate.bias"] = torch.zeros(8)
        tensors["grad_other.x"] = torch.zeros(11, 7)
        tensors["w.gate.weight"] = torch.zeros(7, 8)
        tensors["r"] = torch.zeros(11, 7, dtype=torch.int64)
        tensors["x"][3, 2] = torch.nan

    edit_tensors(folder, edit)
    assert problems(folder) == [
        f"--layer ({folder}): {line}"
        for line in (
            "grad.x is missing",
            "loss.z is missing",
            "routing_map is missing",
            "w.experts.2.up_proj.weight is missing",
            "y is missing",
            "grad_other.x is not known",
            "w.gate.bias is not known",
            "r has dtype torch.int64, which is no floating point",
            "w.gate.weight has shape [7, 8], not [8, 7]",
            "x is not finite",
        )
    ]


def test_everything_wrong_with_the_config_is_said_at_once(folder: Path) -> None:
    edit_config(folder, num_experts=2, hidden_size=0, norm_topk_prob="yes")
    assert problems(folder) == [
        f"--layer ({folder}): {line}"
        for line in (
            "hidden_size (0) of config.json is not an integer of 1 or more",
            "norm_topk_prob (yes) of config.json is not one of (False, True)",
            "top_k (3) of config.json is above num_experts (2)",
        )
    ]


def test_the_routing_has_a_row_a_token_and_a_column_an_expert(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update(routing_map=t["routing_map"][:, :-1].contiguous()))
    (problem,) = problems(folder)
    assert problem.endswith("the routing of the tokens has shape [11, 7], not [11, 8]")


@pytest.mark.parametrize(
    ("name", "tensor", "wrong", "line"),
    [
        ("switch", "expert", lambda t: t + 3, "the routing of the tokens cannot be read: "),
        ("switch", "kept", lambda t: t[:-1], "the routing of the tokens cannot be read: "),
        ("switch", "expert", lambda t: t[:-1], "the routing of the tokens cannot be read: "),
        ("deepseek_v3", "e_score_correction_bias", lambda t: t[:1], "has shape [1], not [16]"),
        ("st_moe", "uniform", lambda t: t[:-1], "uniform has shape [44], not [45]"),
        ("st_moe", "uniform", None, "uniform is missing"),
        ("hash", "token_ids", lambda t: t + 90, "token_ids is not 39 whole numbers from 0 to 95"),
        ("hash", "hash_table", lambda t: t[1:], "hash_table is not 96 whole numbers from 0 to 5"),
        ("hash", "hash_table", None, "hash_table is missing"),
    ],
)
def test_what_a_system_has_beside_weights_is_looked_at_too(
    name: str, tensor: str, wrong: Callable[[Any], Any] | None, line: str, tmp_path: Path
) -> None:
    shutil.copytree(GOLDENS / name, tmp_path / name)

    def edit(tensors: dict[str, Any]) -> None:
        found = tensors.pop(tensor)
        if wrong is not None:
            tensors[tensor] = wrong(found).contiguous()

    edit_tensors(tmp_path / name, edit)
    (problem,) = problems(tmp_path / name)
    assert line in problem


def test_sequences_are_rows_of_the_file() -> None:
    settings = Golden.read(GOLDENS / "deepseek_v3").settings
    assert (settings.batch, settings.sequence) == (3, 13)


@pytest.mark.parametrize("text", [None, "{", "[]", '"x"'])
def test_a_config_that_is_none(text: str | None, folder: Path) -> None:
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    (problem,) = problems(folder)
    assert "config.json" in problem


def test_a_file_that_is_no_safetensors(folder: Path) -> None:
    (folder / "layer.safetensors").write_bytes(b"none")
    (problem,) = problems(folder)
    assert "layer.safetensors is not a safetensors file" in problem


def test_a_variant_that_is_not_there(folder: Path) -> None:
    assert problems(folder, "other") == [
        f"--variant (other) has no layer.other.safetensors in {folder}; there are: "
        "layer.safetensors"
    ]


def test_a_variant_is_read_from_its_own_file_and_settings() -> None:
    flags = {
        variant: Golden.read(GOLDENS / "deepseek_v2", variant).system.flags
        for variant in ("greedy", "greedy_norm")
    }
    assert "--moe-router-pre-softmax" in flags["greedy"]
    assert "--moe-router-pre-softmax" not in flags["greedy_norm"]


def test_a_system_that_nobody_knows(folder: Path) -> None:
    edit_config(folder, system="qwen9")
    (problem,) = problems(folder)
    assert '"system" of config.json (qwen9) is not known; there are mixtral, qwen2_moe' in problem
