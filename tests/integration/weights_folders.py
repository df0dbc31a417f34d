"""Small models as folders to convert, and what can be said of any folder."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from .tiny_grove import random_weights

# Small enough to convert in a moment; the widths that the released code has as literals.
SMALL: dict[str, Any] = {
    "architectures": ["GroveMoeForCausalLM"],
    "model_type": "grove_moe",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_group": 2,
    "moe_intermediate_size": 12,
    "parallel_expert_intermediate_size": 128,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
# What an export of a Grove MoE says of the code beside it.
CODE: dict[str, Any] = {
    "auto_map": {
        "AutoConfig": "configuration_grove_moe.GroveMoeConfig",
        "AutoModel": "modeling_grove_moe.GroveMoeModel",
        "AutoModelForCausalLM": "modeling_grove_moe.GroveMoeForCausalLM",
    }
}
INDEX = "model.safetensors.index.json"
SHARDS = [f"model-{i + 1:05d}-of-00003.safetensors" for i in range(3)]


def small_tensors() -> dict[str, Tensor]:
    return random_weights(SMALL, seed=3)


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Three files and their index, tensors in turn."""
    weight_map = {name: SHARDS[i % 3] for i, name in enumerate(sorted(tensors))}
    for shard in SHARDS:
        held = {n: tensors[n].contiguous() for n, file in weight_map.items() if file == shard}
        save_file(held, folder / shard, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_small(folder: Path) -> Path:
    """:data:`SMALL` with random weights in three shards."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SMALL, indent=2))
    (folder / "tokenizer.json").write_text('{"model": "none"}')
    write_shards(folder, small_tensors())
    return folder


def write_biased(folder: Path, source: Path) -> Path:
    """The golden model of ``source`` with an expert bias in both layers."""
    folder.mkdir()
    (folder / "config.json").write_text((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    for layer in range(2):
        tensors[f"model.layers.{layer}.mlp.expert_bias"] = torch.linspace(-1, 1, 16)
    save_file(tensors, folder / "model.safetensors")
    return folder


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face folder, by the safetensors library."""
    index = folder / INDEX
    if not index.exists():
        return load_file(folder / "model.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    loaded = {file: load_file(folder / file) for file in sorted(set(weight_map.values()))}
    assert sum(map(len, loaded.values())) == len(weight_map)
    return {name: loaded[file][name] for name, file in weight_map.items()}


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def grove(*arguments: Any) -> Any:
    """The ``grove`` command, in this process; what click calls a result."""
    from grove_megatron.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: Any) -> Any:
    result = grove(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result
