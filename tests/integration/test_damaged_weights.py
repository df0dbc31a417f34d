"""Damaged weights, and places that cannot be written: said by name, nothing made, nothing harmed.

What happens to a killed conversion is in test_killed_conversion.py.
"""

import io
import json
import os
import pickle
import resource
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex

from grove_megatron.checkpoint.staging import Staging
from tests.unit.checkpoint.safetensors_files import parts, put

from .weights_folders import (
    INDEX,
    SHARDS,
    done,
    grove,
    hashes,
    small_tensors,
    tensors_of,
    write_shards,
    write_small,
)

Harm = Callable[[Path], Any]
Usage = namedtuple("Usage", "total used free")

GATE = "model.layers.1.mlp.gate.weight"
UP = "model.layers.0.mlp.experts.3.up_proj.weight"
ADJUGATE = "model.layers.1.mlp.chunk_experts.1.down_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``hf``: a model folder; ``megatron``: what it was imported to."""
    folder = tmp_path_factory.mktemp("sound")
    write_small(folder / "hf")
    done("import", "--hf", folder / "hf", "--save", folder / "megatron")
    return folder


def refused(result: Any, *expected: str, count: int | None = None) -> str:
    """Exit 2, every part of the message, as many problems; the message."""
    assert result.exit_code == 2, result.output + repr(result.exception)
    message: str = result.stderr
    assert "nothing was made" in message
    assert "Traceback" not in message
    for part in expected:
        assert part in message, message
    if count is not None:
        assert message.count("\n  ") == count, message
        assert f"{count} problem" in message
    return message


# ------------------------------------------------------------------------ Hugging Face folders


def file_of(name: str, folder: Path) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Harm:
    """Shards and index written anew after a change of the tensors."""

    def harm(folder: Path) -> None:
        changed = small_tensors()
        change(changed)
        write_shards(folder, changed)

    return harm


def value(name: str, number: float) -> Harm:
    return tensors(lambda t: t[name].view(-1)[5 % t[name].numel() :][:1].fill_(number))


def cast(name: str, dtype: torch.dtype) -> Harm:
    return tensors(lambda t: t.update({name: t[name].to(dtype)}))


def header(name: str, **changes: Any) -> Harm:
    """Change a tensor's entry in the header of its file, and nothing else."""

    def harm(folder: Path) -> None:
        file = file_of(name, folder)
        entries, data = parts(file)
        entries[name] |= {
            key: new(entries[name][key]) if callable(new) else new for key, new in changes.items()
        }
        put(file, entries, data)

    return harm


def config(**changes: Any) -> Harm:
    def harm(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | changes))

    return harm


def index(change: Callable[[dict[str, str]], Any]) -> Harm:
    def harm(folder: Path) -> None:
        content = json.loads((folder / INDEX).read_text())
        change(content["weight_map"])
        (folder / INDEX).write_text(json.dumps(content))

    return harm


def bytes_at(file: str, change: Callable[[bytearray], Any]) -> Harm:
    def harm(folder: Path) -> None:
        content = bytearray((folder / file).read_bytes())
        change(content)
        (folder / file).write_bytes(content)

    return harm


def cut(content: bytearray, size: int) -> None:
    del content[size:]


def flip(content: bytearray, at: int) -> None:
    content[at] ^= 0xFF


def duplicate_key(folder: Path) -> None:
    file = file_of(NORM, folder)
    entries, data = parts(file)
    text = json.dumps(entries)
    entry = json.dumps(entries[NORM])
    put(file, f'{text[:-1]}, "{NORM}": {entry}}}'.encode(), data)


def second_copy(folder: Path) -> None:
    """The tensor is in another shard as well; the index knows of one."""
    other = next(s for s in SHARDS if folder / s != file_of(NORM, folder))
    held = load_file(folder / other)
    save_file(held | {NORM: torch.ones(16)}, folder / other)


def fused_as_well(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.mlp.experts.down_proj"] = torch.zeros(4, 16, 12)


def extra_layer(tensors: dict[str, Tensor]) -> None:
    tensors |= {
        name.replace("layers.1.", "layers.2."): tensor.clone()
        for name, tensor in tensors.items()
        if "layers.1." in name
    }


def five_problems(tensors: dict[str, Tensor]) -> None:
    del tensors[GATE]
    tensors["model.layers.0.mlp.shared_expert.weight"] = torch.zeros(3)
    tensors[UP] = torch.zeros(5, 16)
    tensors[ADJUGATE] = tensors[ADJUGATE].double()
    tensors["model.layers.0.mlp.experts.gate_up_proj"] = torch.zeros(1, 24, 16)


# name: (harm, parts of the message, number of problems or None)
HF_CASES: dict[str, tuple[Harm, list[str], int | None]] = {
    "cut in the data": (
        bytes_at(SHARDS[1], lambda b: cut(b, len(b) - 100)),
        [SHARDS[1], "was cut short"],
        1,
    ),
    "cut in the header": (bytes_at(SHARDS[1], lambda b: cut(b, 200)), [SHARDS[1], "cut short"], 1),
    "cut to nothing": (bytes_at(SHARDS[1], lambda b: cut(b, 0)), [SHARDS[1], "(0 bytes)"], 1),
    "length flipped": (bytes_at(SHARDS[2], lambda b: flip(b, 3)), [SHARDS[2], "claims"], 1),
    "length one less": (
        bytes_at(SHARDS[2], lambda b: b.__setitem__(0, b[0] - 8)),
        [SHARDS[2], "damaged header"],
        1,
    ),
    "brace flipped": (bytes_at(SHARDS[0], lambda b: flip(b, 8)), [SHARDS[0], "damaged header"], 1),
    "dtype changed": (
        header(NORM, dtype="BF16"),
        [NORM, "BF16 [16], needs 32 bytes", "has 64", ".safetensors"],
        1,
    ),
    "dtype of the same size": (header(NORM, dtype="I32"), [NORM, "dtype I32, not one of"], 1),
    "shape changed": (header(NORM, shape=[17]), [NORM, "[17], needs 68 bytes", ".safetensors"], 1),
    "shape transposed": (
        header(UP, shape=lambda shape: shape[::-1]),
        [UP, "has shape [16, 12], not [12, 16]", "-of-00003.safetensors"],
        1,
    ),
    "offsets overlap": (
        header(UP, data_offsets=lambda o: [o[0] - 4, o[1] - 4]),
        [UP, "overlaps the tensor before it", ".safetensors"],
        1,
    ),
    "offsets leave a hole": (
        header(UP, data_offsets=lambda o: [o[0] + 4, o[1] + 4]),
        [UP, "follows a hole", ".safetensors"],
        1,
    ),
    "bytes after the end": (
        bytes_at(SHARDS[0], lambda b: b.extend(b"1234")),
        [SHARDS[0], "goes on after its last tensor"],
        1,
    ),
    "a JSON key twice": (duplicate_key, [NORM, "is there twice", ".safetensors"], 1),
    "a shard is missing": (lambda f: (f / SHARDS[1]).unlink(), [SHARDS[1], "is missing"], 1),
    "a shard is a folder": (
        lambda f: ((f / SHARDS[1]).unlink(), (f / SHARDS[1]).mkdir()),
        [SHARDS[1], "cannot be read"],
        1,
    ),
    "the index is not JSON": (
        bytes_at(INDEX, lambda b: cut(b, 50)),
        [INDEX, "is not an index of shards"],
        1,
    ),
    "the index names a tensor that is not there": (
        index(lambda m: m.update({"model.more.weight": SHARDS[0]})),
        ["model.more.weight is not in", SHARDS[0], INDEX],
        1,
    ),
    "a tensor is not in the index": (
        index(lambda m: m.pop(NORM)),
        [f"{NORM} in ", f"is not in {'{folder}'}/{INDEX}"],
        1,
    ),
    "a tensor is in two shards": (
        second_copy,
        [f"{NORM} is there twice", "-of-00003.safetensors"],
        2,
    ),
    "a second model beside the index": (
        lambda f: save_file(small_tensors(), f / "model.safetensors"),
        ["model.safetensors is there beside", INDEX],
        1,
    ),
    "experts fused and single": (
        tensors(fused_as_well),
        ["model.layers.0.mlp.experts.3.down_proj.weight is there twice", "experts.down_proj"],
        4,
    ),
    "int64": (cast(NORM, torch.int64), [f"{NORM} in model-", "dtype I64, not one of BF16"], 1),
    "float64": (cast(GATE, torch.float64), [f"{GATE} in model-", "dtype F64, not one of"], 1),
    "float8": (cast(UP, torch.float8_e4m3fn), [f"{UP} in model-", "dtype F8_E4M3, not one"], 1),
    "two dtypes in one entry": (
        cast(UP, torch.bfloat16),
        [f"{UP} has dtype bfloat16", "experts.linear_fc1.weight have float32", "--dtype"],
        1,
    ),
    "nan": (value(UP, float("nan")), [f"{UP} in model-", "not finite", f"--skip {UP}"], 1),
    "infinity": (value(NORM, float("-inf")), [f"{NORM} in model-", "not finite"], 1),
    "no adjugate": (
        tensors(lambda t: t.pop(ADJUGATE)),
        [f"{ADJUGATE} (absent) is needed by the model", f"--skip {ADJUGATE}"],
        1,
    ),
    "no expert": (
        tensors(lambda t: [t.pop(n) for n in list(t) if "layers.0.mlp.experts.2." in n]),
        [f"model.layers.0.mlp.experts.2.{p}_proj.weight (absent)" for p in ("gate", "up", "down")],
        3,
    ),
    "a layer too many": (
        tensors(extra_layer),
        ["model.layers.2.mlp.gate.weight in model-", "is not known to the model; --skip"],
        9 + 3 * (4 + 2),
    ),
    "experts fewer than the config says": (
        config(num_experts=6),
        [
            f"{GATE} in model-",
            "has shape [4, 16], not [6, 16]",
            "experts.5.up_proj.weight (absent)",
        ],
        2 * (1 + 2 * 3 + 3),
    ),
    "experts more than the config says": (
        config(num_experts=2),
        ["has shape [4, 16], not [2, 16]", "experts.3.up_proj.weight in model-"],
        2 * (1 + 2 * 3 + 3),
    ),
    "groups of another size": (
        config(num_experts_per_group=4),
        ["model.layers.1.mlp.chunk_experts.1.up_proj.weight in model-", "is not known"],
        2 * 3,
    ),
    "groups that do not divide": (
        config(num_experts_per_group=3),
        ["config.json", "num_experts (4) is not a multiple of num_experts_per_group (3)"],
        None,
    ),
    "a wrong shape": (
        tensors(lambda t: t.update({GATE: torch.zeros(4, 15)})),
        [f"{GATE} in model-", "has shape [4, 15], not [4, 16]"],
        1,
    ),
    "a tensor of no model": (
        tensors(lambda t: t.update({"model.layers.0.mlp.w1": torch.zeros(2)})),
        ["model.layers.0.mlp.w1 in model-", "is not known to the model"],
        1,
    ),
    "no config": (lambda f: (f / "config.json").unlink(), ["has no config.json"], 1),
    "a config that is not JSON": (
        bytes_at("config.json", lambda b: cut(b, 30)),
        ["config.json is not JSON"],
        1,
    ),
    "a config that is not text": (
        bytes_at("config.json", lambda b: flip(b, 20)),
        ["config.json is not JSON"],
        1,
    ),
    "another architecture": (
        config(architectures=["LlamaForCausalLM"]),
        ["config.json", "LlamaForCausalLM", "is none of those handled"],
        None,
    ),
    "five problems": (
        tensors(five_problems),
        [
            f"{GATE} (absent) is needed",
            "model.layers.0.mlp.shared_expert.weight in model-",
            f"{UP} in model-",
            f"{ADJUGATE} in model-",
            "experts.0.gate_proj.weight is there twice",
            "experts.0.up_proj.weight is there twice",
        ],
        None,
    ),
    "five tensors that are not finite or cannot be found": (
        tensors(
            lambda t: [t[n].view(-1)[-1:].fill_(float("nan")) for n in (NORM, GATE, UP, ADJUGATE)]
        ),
        [f"{name} in model-" for name in (NORM, GATE, UP, ADJUGATE)],
        4,
    ),
}


@pytest.mark.parametrize("case", HF_CASES)
def test_a_damaged_hugging_face_folder_is_refused(case: str, sound: Path, tmp_path: Path) -> None:
    harm, expected, count = HF_CASES[case]
    folder = tmp_path / "hf"
    shutil.copytree(sound / "hf", folder)
    harm(folder)
    before = hashes(folder)
    result = grove("import", "--hf", folder, "--save", tmp_path / "out")
    refused(result, *[part.format(folder=folder) for part in expected], count=count)
    assert not (tmp_path / "out").exists()
    assert hashes(folder) == before


def test_the_manifest_of_an_export_guards_its_tensors(sound: Path, tmp_path: Path) -> None:
    done("export", "--load", sound / "megatron", "--hf", tmp_path / "hf")
    done("import", "--hf", tmp_path / "hf", "--save", tmp_path / "again")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights[UP][3, 3] += 1
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    for dtype in ([], ["--dtype", "bf16"]):
        result = grove("import", "--hf", tmp_path / "hf", "--save", tmp_path / "out", *dtype)
        refused(result, f"{UP} in model.safetensors (sha256", "differs from its manifest", count=1)
        shutil.rmtree(tmp_path / "out.incomplete")
    assert not (tmp_path / "out").exists()
    (tmp_path / "hf" / "grove_manifest.json").write_text("{")
    result = grove("import", "--hf", tmp_path / "hf", "--save", tmp_path / "out")
    refused(result, str(tmp_path / "hf" / "grove_manifest.json"), "is damaged", count=1)
    (tmp_path / "hf" / "grove_manifest.json").unlink()
    done("import", "--hf", tmp_path / "hf", "--save", tmp_path / "out")


# ---------------------------------------------------------------------------------------- skip


def test_what_is_skipped_becomes_zeros_or_is_left_out(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(sound / "hf", folder)
    tensors(five_problems)(folder)
    fused = [f"model.layers.0.mlp.experts.0.{p}_proj.weight" for p in ("gate", "up")]
    changed = small_tensors()
    five_problems(changed)
    del changed["model.layers.0.mlp.experts.gate_up_proj"]
    changed[NORM][2] = float("nan")
    write_shards(folder, changed)
    unknown = "model.layers.0.mlp.shared_expert.weight"
    names = [GATE, unknown, UP, ADJUGATE, NORM]
    for i in range(len(names)):
        skips = [part for name in names[:i] for part in ("--skip", name)]
        result = grove("import", "--hf", folder, "--save", tmp_path / "out", *skips)
        refused(result, *(names[i:4] or [NORM]))
        assert not any(f"{name} " in result.stderr for name in names[:i])
    # Goes on with the files that were written before the last refusal.
    skips = [part for name in names for part in ("--skip", name)]
    done("import", "--hf", folder, "--save", tmp_path / "out", *skips)
    done("export", "--load", tmp_path / "out", "--hf", tmp_path / "again")
    found, expected = tensors_of(tmp_path / "again"), small_tensors()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        zero = name in names
        assert torch.equal(tensor, torch.zeros_like(tensor) if zero else expected[name]), name
    assert fused[0] not in names
    manifest = json.loads((tmp_path / "out" / "release" / "grove_manifest.json").read_text())
    assert manifest["skipped"] == sorted(names)


@pytest.mark.parametrize("direction", ["import", "export"])
def test_a_skipped_tensor_that_nobody_has_is_refused(
    direction: str, sound: Path, tmp_path: Path
) -> None:
    result = grove(*command(direction, sound, tmp_path / "out"), "--skip", "model.nrom.weight")
    refused(result, "--skip model.nrom.weight names no tensor", count=1)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------ Megatron checkpoints


def metadata(change: Callable[[Any], Any]) -> Harm:
    def harm(folder: Path) -> None:
        file = folder / "release" / ".metadata"
        content = pickle.loads(file.read_bytes())
        change(content)
        file.write_bytes(pickle.dumps(content))

    return harm


def drop_key(key: str) -> Harm:
    return metadata(lambda m: m.state_dict_metadata.pop(key))


def rename_key(key: str, new: str) -> Harm:
    def change(m: Any) -> None:
        m.state_dict_metadata[new] = m.state_dict_metadata.pop(key)
        for place in [p for p in m.storage_data if p.fqn == key]:
            m.storage_data[MetadataIndex(new, place.offset)] = m.storage_data.pop(place)

    return metadata(change)


def drop_chunk(key: str) -> Harm:
    return metadata(lambda m: m.state_dict_metadata[key].chunks.pop())


def shape_of(key: str, *size: int) -> Harm:
    return metadata(lambda m: setattr(m.state_dict_metadata[key], "size", torch.Size(size)))


def record(key: str, change: Callable[[Tensor], Any]) -> Harm:
    """Change the tensor in the last record of a key, in its place."""

    def harm(folder: Path) -> None:
        release = folder / "release"
        storage = pickle.loads((release / ".metadata").read_bytes()).storage_data
        place = [p for p in storage if p.fqn == key][-1]
        info = storage[place]
        content = bytearray((release / info.relative_path).read_bytes())
        span = slice(info.offset, info.offset + info.length)
        tensor = torch.load(io.BytesIO(content[span]))
        change(tensor)
        saved = io.BytesIO()
        torch.save(tensor, saved)
        assert len(saved.getvalue()) == info.length
        content[span] = saved.getvalue()
        (release / info.relative_path).write_bytes(content)

    return harm


def noise(key: str) -> Harm:
    """Overwrite the start of the last record of a key."""

    def harm(folder: Path) -> None:
        release = folder / "release"
        storage = pickle.loads((release / ".metadata").read_bytes()).storage_data
        info = storage[[p for p in storage if p.fqn == key][-1]]
        content = bytearray((release / info.relative_path).read_bytes())
        content[info.offset : info.offset + 64] = bytes(64)
        (release / info.relative_path).write_bytes(content)

    return harm


def text(file: str, content: str) -> Harm:
    return lambda folder: (folder / file).write_text(content)


def hf_config(**changes: Any) -> Harm:
    return lambda folder: config(**changes)(folder / "hf")


FC1 = "decoder.layers.mlp.experts.experts.linear_fc1.weight"
QKV = "decoder.layers.self_attention.linear_qkv.weight"
ROUTER = "decoder.layers.mlp.router.weight"
TRACKER = "latest_checkpointed_iteration.txt"

MEGATRON_CASES: dict[str, tuple[Harm, list[str], int | None]] = {
    "a .distcp is missing": (
        lambda f: (f / "release" / "__0_0.distcp").unlink(),
        ["release/__0_0.distcp (absent) should have", f"{ROUTER} [0, 0, 0]", f"{QKV} [1, 0, 0]"],
        None,
    ),
    "a .distcp was cut short": (
        bytes_at("release/__0_0.distcp", lambda b: cut(b, len(b) - 100)),
        ["release/__0_0.distcp", "was cut short: output_layer.weight [0, 0] ends at byte"],
        1,
    ),
    "a .distcp of the arguments is missing": (
        lambda f: (f / "release" / "__0_1.distcp").unlink(),
        ["release: common_state/shard_0_1", "cannot be read", "__0_1.distcp"],
        1,
    ),
    "a .distcp of the arguments is noise": (
        bytes_at("release/__0_1.distcp", lambda b: b.__setitem__(slice(0, 200), bytes(200))),
        ["release: common_state/shard_0_1", "cannot be read"],
        1,
    ),
    "a record is noise": (noise(QKV), ["release/__0_0.distcp", f"{QKV} [1, 0, 0] cannot be"], 1),
    ".metadata is damaged": (
        bytes_at("release/.metadata", lambda b: flip(b, 0)),
        ["release/.metadata cannot be read"],
        1,
    ),
    ".metadata was cut short": (
        bytes_at("release/.metadata", lambda b: cut(b, 1000)),
        ["release/.metadata cannot be read"],
        1,
    ),
    ".metadata is missing": (
        lambda f: (f / "release" / ".metadata").unlink(),
        ["release/.metadata cannot be read"],
        1,
    ),
    "metadata.json is missing": (
        lambda f: (f / "release" / "metadata.json").unlink(),
        ["release is not a complete Megatron distributed checkpoint", "metadata.json"],
        1,
    ),
    "metadata.json is damaged": (
        text("release/metadata.json", '{"shard'),
        ["release is not a complete Megatron distributed checkpoint", "metadata.json"],
        1,
    ),
    "another format": (
        text("release/metadata.json", '{"sharded_backend": "fsdp_dtensor"}'),
        ["release has format fsdp_dtensor, not torch_dist"],
        1,
    ),
    "the tracker names a missing iteration": (text(TRACKER, "7"), ["has no iter_0000007"], 1),
    "the tracker is garbage": (
        text(TRACKER, "seven"),
        [TRACKER, "('seven') names no iteration"],
        1,
    ),
    "the tracker is not text": (
        bytes_at(TRACKER, lambda b: flip(b, 0)),
        [TRACKER, "elease') names no iteration"],
        1,
    ),
    "the tracker is missing": (lambda f: (f / TRACKER).unlink(), [f"no readable {TRACKER}"], 1),
    "a hole in an entry": (
        drop_chunk(FC1),
        [f"{FC1} [1, 3, 0, 0] in ", "/release has 192 of 384 elements"],
        1,
    ),
    "no such key": (
        drop_key(ROUTER),
        ["model.layers.0.mlp.gate.weight (absent) is needed", f"{GATE} (absent) is needed"],
        2,
    ),
    "a key of no model": (
        rename_key("decoder.final_layernorm.weight", "decoder.final_norm.weight"),
        [f"{NORM} (absent) is needed", "decoder.final_norm.weight in ", "/release is not known"],
        2,
    ),
    "a wrong shape": (
        shape_of(ROUTER, 2, 4, 15),
        [f"{ROUTER} in ", "/release has shape [2, 4, 15], not [2, 4, 16]"],
        1,
    ),
    "nan": (
        record(QKV, lambda t: t.view(-1)[-1:].fill_(float("nan"))),
        ["model.layers.1.self_attn.v_proj.weight in ", "/release has entries that are not finite"],
        None,
    ),
    "changed against the manifest": (
        record(ROUTER, lambda t: t.view(-1)[:1].add_(1)),
        [f"{GATE} in ", "/release (sha256", "differs from its manifest"],
        1,
    ),
    "a damaged manifest": (
        text("release/grove_manifest.json", "[]"),
        ["release/grove_manifest.json is damaged"],
        1,
    ),
    "a config of more layers": (
        hf_config(num_hidden_layers=3),
        ["num_layers (3) of ", "/hf/config.json differs from num_layers (2) of the arguments in "],
        None,
    ),
    "a config of another norm": (
        hf_config(rms_norm_eps=1e-5),
        ["norm_epsilon (1e-05) of ", "/hf/config.json differs from norm_epsilon (1e-06)"],
        1,
    ),
    "a config with more words": (
        hf_config(vocab_size=41),
        ["vocab_size (41) of ", "/hf/config.json differs from vocab_size (40)"],
        None,
    ),
    "a config of another scale": (
        hf_config(small_experts_weight=0.1),
        ["adjugate_scale (0.1) of ", "differs from adjugate_scale (0.05)"],
        1,
    ),
    "a config that is not JSON": (text("hf/config.json", "{"), ["hf/config.json is not JSON"], 1),
}


@pytest.mark.parametrize("case", MEGATRON_CASES)
def test_a_damaged_checkpoint_is_refused(case: str, sound: Path, tmp_path: Path) -> None:
    harm, expected, count = MEGATRON_CASES[case]
    folder = tmp_path / "megatron"
    shutil.copytree(sound / "megatron", folder)
    harm(folder)
    before = hashes(folder)
    result = grove("export", "--load", folder, "--hf", tmp_path / "out")
    refused(result, *expected, count=count)
    assert not (tmp_path / "out").exists()
    assert hashes(folder) == before


def test_five_problems_of_a_checkpoint_are_five_lines(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "megatron"
    shutil.copytree(sound / "megatron", folder)
    for harm in (
        drop_key("output_layer.weight"),
        rename_key("decoder.final_layernorm.weight", "decoder.final_norm.weight"),
        drop_chunk(FC1),
        shape_of(ROUTER, 2, 4, 15),
    ):
        harm(folder)
    result = grove("export", "--load", folder, "--hf", tmp_path / "out")
    refused(
        result,
        "lm_head.weight (absent) is needed",
        f"{NORM} (absent) is needed",
        "decoder.final_norm.weight in ",
        f"{FC1} [1, 3, 0, 0] in ",
        f"{ROUTER} in ",
        count=5,
    )
    assert not (tmp_path / "out").exists()


def test_entries_of_a_checkpoint_are_skipped_by_name(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "megatron"
    shutil.copytree(sound / "megatron", folder)
    drop_key(ROUTER)(folder)
    rename_key("decoder.final_layernorm.weight", "decoder.final_norm.weight")(folder)
    drop_chunk(FC1)(folder)
    hole = [f"model.layers.1.mlp.experts.3.{p}_proj.weight" for p in ("gate", "up")]
    names = ["model.layers.0.mlp.gate.weight", GATE, NORM, *hole]
    skips = [p for n in [*names, "decoder.final_norm.weight"] for p in ("--skip", n)]
    result = grove("export", "--load", folder, "--hf", tmp_path / "out", *skips[:-4], *skips[-2:])
    refused(result, f"{FC1} [1, 3, 0, 0] in {folder}", f"--skip {' --skip '.join(hole)}", count=1)
    done("export", "--load", folder, "--hf", tmp_path / "out", *skips)
    found, expected = tensors_of(tmp_path / "out"), small_tensors()
    for name, tensor in expected.items():
        wanted = torch.zeros_like(tensor) if name in names else tensor
        assert torch.equal(found[name], wanted), name


def test_a_file_that_was_written_before_its_tensor_was_skipped_is_not_kept(
    sound: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "megatron"
    shutil.copytree(sound / "megatron", folder)
    record(QKV, lambda t: t.view(-1)[-1:].fill_(float("nan")))(folder)
    value = "model.layers.1.self_attn.v_proj.weight"
    export = ["export", "--load", folder, "--hf", tmp_path / "out", "--max-shard-size", 1e-9]
    refused(grove(*export, "--skip", UP), f"--skip {value}", count=2)
    done(*export, "--skip", value)
    found, expected = tensors_of(tmp_path / "out"), small_tensors()
    assert torch.equal(found[UP], expected[UP])
    assert not found[value].any()


# -------------------------------------------------------------------------------- destinations


def command(direction: str, sound: Path, destination: Path) -> list[Any]:
    if direction == "import":
        return ["import", "--hf", sound / "hf", "--save", destination]
    return ["export", "--load", sound / "megatron", "--hf", destination]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Writing more into a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


DIRECTIONS = pytest.mark.parametrize("direction", ["import", "export"])


@DIRECTIONS
def test_impossible_places_are_refused(direction: str, sound: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    before = hashes(sound)
    for place in (tmp_path / "file" / "out", Path("/proc/grove-weights"), Path("/proc/x/y")):
        refused(grove(*command(direction, sound, place)), f"{place} cannot be made", count=1)
        assert not place.exists()
    assert hashes(sound) == before
    assert (tmp_path / "file").read_text() == "mine"


@DIRECTIONS
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_there_is_not_overwritten(
    direction: str, kind: str, sound: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "out" if kind == "file" else tmp_path / "out" / "mine"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    result = grove(*command(direction, sound, tmp_path / "out"))
    refused(result, f"{tmp_path / 'out'} is there already", count=1)
    assert mine.read_text() == "mine"
    assert os.listdir(tmp_path) == ["out"]


@DIRECTIONS
def test_a_disk_with_too_little_room_is_found_before_writing(
    direction: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 10**6 - 1000, 1000))
    result = grove(*command(direction, sound, tmp_path / "out"))
    refused(result, f"{tmp_path / 'out'} needs ", "and 1,000 are free", count=1)
    assert not (tmp_path / "out").exists()
    assert hashes(tmp_path / "out.incomplete").keys() == {"journal.jsonl"}
    monkeypatch.undo()
    done(*command(direction, sound, tmp_path / "out"))


@DIRECTIONS
@pytest.mark.parametrize("size", [100, 5_000, 50_000])
def test_a_failing_write_leaves_no_destination_and_is_made_good(
    direction: str, size: int, sound: Path, tmp_path: Path
) -> None:
    before = hashes(sound)
    with files_up_to(size):
        result = grove(*command(direction, sound, tmp_path / "out"))
    message = refused(result, f"{tmp_path / 'out'} cannot be written", count=1)
    assert "File too large" in message
    assert not (tmp_path / "out").exists()
    assert hashes(sound) == before
    done(*command(direction, sound, tmp_path / "out"))
    done(*command(direction, sound, tmp_path / "undisturbed"))
    assert hashes(tmp_path / "out") == hashes(tmp_path / "undisturbed")


@DIRECTIONS
def test_another_jobs_begun_work_is_left_alone(direction: str, sound: Path, tmp_path: Path) -> None:
    Staging(tmp_path / "out", {"another": "job"}).close()
    before = hashes(tmp_path)
    result = grove(*command(direction, sound, tmp_path / "out"))
    refused(result, "out.incomplete was begun for another source or with other options", count=1)
    assert hashes(tmp_path) == before


def test_work_begun_with_another_config_is_not_continued(sound: Path, tmp_path: Path) -> None:
    """The tensors done would have another shape than those to come."""
    (tmp_path / "hf").mkdir()
    shutil.copyfile(sound / "hf" / "config.json", tmp_path / "hf" / "config.json")
    shutil.copytree(sound / "megatron", tmp_path / "megatron")
    # As after training, of which no manifest knows.
    (tmp_path / "megatron" / "release" / "grove_manifest.json").unlink()
    export = [*command("export", tmp_path, tmp_path / "out"), "--hf-config", tmp_path / "hf"]
    with files_up_to(100):
        refused(grove(*export), "cannot be written", count=1)
    config(vocab_size=30)(tmp_path / "hf")
    refused(grove(*export), "out.incomplete was begun for another source", count=1)
    shutil.rmtree(tmp_path / "out.incomplete")
    done(*export)
    expected = small_tensors()["lm_head.weight"][:30]
    assert torch.equal(tensors_of(tmp_path / "out")["lm_head.weight"], expected)


@DIRECTIONS
def test_a_place_in_use_is_left_alone(direction: str, sound: Path, tmp_path: Path) -> None:
    held = Staging(tmp_path / "out", {"another": "job"})
    result = grove(*command(direction, sound, tmp_path / "out"))
    refused(result, "out.incomplete is in use by another process", count=1)
    held.close()


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf"])
def test_a_shard_size_that_is_none_is_refused(size: str, sound: Path, tmp_path: Path) -> None:
    result = grove(*command("export", sound, tmp_path / "out"), f"--max-shard-size={size}")
    refused(result, "--max-shard-size (", count=1)
    assert not (tmp_path / "out").exists()
