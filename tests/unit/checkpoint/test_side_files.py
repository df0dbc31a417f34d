"""What lies beside the weights and would make another model of them is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from grove_megatron.checkpoint.hf_config import config_of
from grove_megatron.checkpoint.hf_files import INDEX, SINGLE
from grove_megatron.checkpoint.side_files import is_carried
from grove_megatron.checkpoint.source import hf_source
from grove_megatron.cli import app

from .architectures import DENSE
from .stored_weights import random_weights

LORA = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 2)}
MERGE = "merge it first"
DEQUANTISE = "dequantise them first"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "hf"
    place.mkdir()
    save_file(random_weights(DENSE), place / SINGLE)
    (place / "config.json").write_text(json.dumps(config_of(DENSE, None, "float32")))
    return place


def text(name: str) -> Callable[[Path], None]:
    return lambda folder: put(folder / name, b"{}")


def tensors(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        save_file(LORA, folder / name)

    return write


def put(file: Path, content: bytes) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    **{name: (text(name), MERGE) for name in ("adapter_config.json", "adapter_model.bin")},
    **{
        name: (tensors(name), MERGE)
        for name in (
            "adapter_model.safetensors",
            "adapter_model-00001-of-00002.safetensors",
            "adapters.safetensors",
            "pytorch_lora_weights.safetensors",
            "default/adapter_model.safetensors",
        )
    },
    "german/adapter_config.json": (text("german/adapter_config.json"), MERGE),
    **{
        name: (text(name), DEQUANTISE)
        for name in ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
    },
    "modules.json": (text("modules.json"), "puts other layers behind the language model"),
    "value_head.bin": (text("value_head.bin"), "is a part of the model that none of the"),
    "consolidated.safetensors": (
        lambda folder: save_file(random_weights(DENSE), folder / "consolidated.safetensors"),
        "is none of the files that the weights are read from",
    ),
    "model-00005-of-00005.safetensors": (
        tensors("model-00005-of-00005.safetensors"),
        "is none of the files that the weights are read from",
    ),
    "mtp.safetensors": (text("mtp.safetensors"), "is none of the files"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_would_be_left_out_is_refused(name: str, folder: Path) -> None:
    write, expected = REFUSED[name]
    write(folder)
    (problem,) = hf_source(folder).refusals()
    assert problem.startswith(str(folder / name))
    assert expected in problem
    # No tensor can be skipped to go on all the same.
    assert hf_source(folder).refusals(frozenset(hf_source(folder).infos())) == [problem]


HARMLESS = (
    *("generation_config.json", "tokenizer.json", "chat_template.jinja", "modeling_x.py"),
    *("README.md", "model.safetensors.index.json.md", "folder/config.json"),
)
UNREAD = ("optimizer.pt", "pytorch_model.bin", "training_args.bin", "model.gguf")


def test_what_says_nothing_of_the_model_is_let_through(folder: Path) -> None:
    for name in (*HARMLESS, *UNREAD):
        put(folder / name, b"x")
    names = ("input_ids", "labels", "logits", "loss", "grad.model.norm.weight")
    save_file({name: torch.zeros(1) for name in names}, folder / "results.safetensors")
    source = hf_source(folder)
    assert source.refusals() == []
    assert source.notices == (
        f"{folder} has model.gguf, optimizer.pt, pytorch_model.bin and 1 more; safetensors alone "
        "are read",
    )


def test_neither_adapters_nor_pickles_go_along(folder: Path) -> None:
    assert all(map(is_carried, HARMLESS))
    refused = [name.rpartition("/")[2] for name in REFUSED]
    assert not any(map(is_carried, (*refused, *UNREAD, "data.npz", "state.pkl", INDEX)))


@pytest.mark.parametrize("command", [["import", "--save"], ["upcycle", "--check", "--save-hf"]])
def test_the_commands_refuse_an_adapter_and_make_nothing(
    command: list[str], folder: Path, tmp_path: Path
) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        REFUSED[name][0](folder)
    out = tmp_path / "out"
    more = ["--num-experts", "4", "--group-size", "2"] if command[0] == "upcycle" else []
    done = CliRunner().invoke(app, [*command, str(out), "--hf", str(folder), *more])
    assert done.exit_code == 2, done.output
    assert "2 problems, nothing was made" in done.stderr
    assert done.stderr.count(MERGE) == 2
    assert not out.exists()


def test_the_folder_of_a_config_gives_no_adapter(folder: Path, tmp_path: Path) -> None:
    made, out = tmp_path / "megatron", tmp_path / "out"
    done = CliRunner().invoke(app, ["import", "--hf", str(folder), "--save", str(made)])
    assert done.exit_code == 0, done.output
    # As an import that did not look for adapters has left it.
    put(made / "hf" / "adapter_config.json", b"{}")
    done = CliRunner().invoke(app, ["export", "--load", str(made), "--hf", str(out)])
    assert done.exit_code == 0, done.output
    assert not (out / "adapter_config.json").exists()
    REFUSED["adapter_model.safetensors"][0](folder)
    more = ["--hf", str(tmp_path / "again"), "--hf-config", str(folder)]
    done = CliRunner().invoke(app, ["export", "--load", str(made), *more])
    assert done.exit_code == 2, done.output
    assert f"{folder / 'adapter_model.safetensors'} belongs to an adapter" in done.stderr


def test_weights_that_are_pickles_alone_are_named(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"in pytorch_model\.bin, a pickle, which is not read"):
        hf_source(folder)


def test_an_adapter_alone_is_named(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(ValueError, match="is an adapter alone; merge it into its model first"):
        hf_source(folder)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/tmp/model.safetensors"])
def test_a_shard_of_another_folder_is_refused(shard: str, folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    with pytest.raises(ValueError, match="is outside the folder"):
        hf_source(folder)


# ------------------------------------------------------------------------------------ quantised


@pytest.mark.parametrize(
    "part", ["qweight", "weight_scale_inv", "weight_packed", "scales", "weight_scale"]
)
def test_parts_of_quantised_weights_are_one_line(part: str, folder: Path) -> None:
    weights = random_weights(DENSE)
    quantised = {
        f"{name.removesuffix('weight')}{part}": tensor.clone()
        for name, tensor in weights.items()
        if name.endswith("proj.weight")
    }
    save_file(weights | quantised, folder / SINGLE)
    with pytest.raises(ValueError, match=rf"has {len(quantised)} tensors such as .*{part}, ") as e:
        hf_source(folder)
    assert DEQUANTISE in str(e.value)


def test_many_tensors_of_one_wrong_dtype_are_one_line(folder: Path) -> None:
    weights = {n: t.to(torch.float8_e4m3fn) for n, t in random_weights(DENSE).items()}
    save_file(weights, folder / SINGLE)
    (problem,) = hf_source(folder).refusals()
    assert f"and {len(weights) - 1} other tensors have dtype F8_E4M3, not one of" in problem


def test_a_refusal_names_the_option_that_lifts_it(folder: Path) -> None:
    weights = random_weights(DENSE)
    name = "model.norm.weight"
    weights[name] = torch.zeros(3)
    save_file(weights, folder / SINGLE)
    (problem,) = hf_source(folder).refusals()
    assert problem.endswith(f"; --skip {name} writes zeros")
    # A command that cannot skip does not name the option.
    (problem,) = hf_source(folder).refusals(can_skip=False)
    assert problem.endswith(" as the config says")
    (folder / SINGLE).rename(folder / "a.safetensors")
    index = {"weight_map": dict.fromkeys([*weights, "more"], "a.safetensors")}
    (folder / INDEX).write_text(json.dumps(index))
    problems = hf_source(folder).refusals()
    assert problems[0].endswith("; --skip more does without")
    assert hf_source(folder).refusals(frozenset({"more", name})) == []
