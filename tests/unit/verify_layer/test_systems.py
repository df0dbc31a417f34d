"""Which system a folder is of, and what is said of those whose router is still to come."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from grove_megatron.checkpoint.weights import ConversionError
from grove_megatron.verify_layer.golden import Golden
from grove_megatron.verify_layer.settings import Settings
from grove_megatron.verify_layer.systems import find_system, known_systems

GOLDENS = Path(__file__).parents[2] / "data" / "goldens"
FOLDERS = sorted(path for path in GOLDENS.iterdir())


def settings_of(name: str, variant: str = "default", **changes: Any) -> Settings:
    values = json.loads((GOLDENS / name / "config.json").read_text())
    return Settings(values | changes, variant)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_folder_is_known_by_its_config_and_else_by_its_name(folder: Path) -> None:
    called = json.loads((folder / "config.json").read_text())["system"]
    by_config = find_system(called, Path("anything"))
    assert by_config is not None
    if called != "grove_megatron":
        assert by_config is find_system(None, folder)
    # What the config says goes before what somebody called the folder.
    assert find_system(called, GOLDENS / "mixtral") is by_config


@pytest.mark.parametrize("called", ["", "mix", "mixtral-8x7b", 7, ["mixtral"]])
def test_no_guesses(called: object) -> None:
    assert find_system(called, GOLDENS / "mixtral") is None


def test_names_are_read_whatever_their_case_and_signs() -> None:
    assert find_system("GROK-1 MoE Layer", Path("x")) is find_system("grok1", Path("x"))


def test_every_system_has_one_name_of_its_own() -> None:
    found = [find_system(name, Path("x")) for name in known_systems()]
    assert None not in found
    assert len(set(found)) == len(found)


def test_every_other_folder_is_all_read() -> None:
    read = [
        Golden.read(folder, file.stem.removeprefix("layer.") if file.stem != "layer" else "default")
        for folder in FOLDERS
        for file in sorted(folder.glob("layer*.safetensors"))
    ]
    assert len(read) == 28
    assert all(golden.weights and golden.grads[None] for golden in read)


def test_a_layer_of_our_own_names_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    config = {"system": "grove_megatron", "hidden_size": 4, "num_tokens": 3, "draws": "both"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"weights": [], "losses": 1}))
    save_file({"x": torch.zeros(1)}, tmp_path / "layer.safetensors")
    with pytest.raises(ConversionError) as refused:
        Golden.read(tmp_path)
    said = " ".join(refused.value.problems)
    for part in (
        "draws (both) of config.json is not one of (uniform, normal)",
        "weights ([]) of config.json is no dict",
        "flags (None) of config.json is no str",
        "losses (1) of config.json is no dict",
        "are without --num-experts",
    ):
        assert part in said
