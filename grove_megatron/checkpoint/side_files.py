"""Files beside the weights of a model that make another model of it, or hold more weights.

Transformers, or a library around it, takes them together with the weights; here they would be left
out without a word.
"""

from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from .golden import is_golden
from .hf_config import DEQUANTISE
from .hf_files import SINGLE
from .safetensors_io import read_header

_ADAPTER = (
    "belongs to an adapter, which is not in the weights; merge it first (in peft "
    "merge_and_unload(), then save_pretrained), or move it away"
)
_QUANTISED = f"says that the weights are quantised; {DEQUANTISE}"
_SENTENCES = (
    "puts other layers behind the language model (sentence-transformers), which are not converted; "
    "move it away if the language model alone is meant"
)
_HEAD = "is a part of the model that none of the converted has; move it away to go without it"

_ADAPTER_WEIGHTS = (
    "adapter_model*",
    "adapters*.safetensors",
    "adapters*.npz",
    "pytorch_adapter*",
    "pytorch_lora_weights*",
)
_IN_THE_WAY = {
    "adapter_config.json": _ADAPTER,
    **dict.fromkeys(_ADAPTER_WEIGHTS, _ADAPTER),
    "quantize_config.json": _QUANTISED,
    "quant_config.json": _QUANTISED,
    "quantization_config.json": _QUANTISED,
    "hf_quant_config.json": _QUANTISED,
    "quanto_qmap.json": _QUANTISED,
    "modules.json": _SENTENCES,
    "value_head.*": _HEAD,
    "v_head.*": _HEAD,
    "medusa_*": _HEAD,
}
# What PEFT saves in a folder of its own for each of several adapters.
_BELOW = {"adapter_config.json", *_ADAPTER_WEIGHTS}

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
_WEIGHTS = (".safetensors", *_PICKLES, ".gguf", ".h5", ".msgpack", ".onnx", ".ot")


def is_carried(name: str) -> bool:
    """Does a file go along with the weights: config, tokenizer, licence, modelling code?"""
    return not name.endswith((*_WEIGHTS, ".index.json")) and _in_the_way(name) is None


def side_problems(folder: Path, read: Collection[Path]) -> list[str]:
    """What lies in a model's folder and would be left out, a line each.

    Args:
        folder: of the model.
        read: the files of its weights.
    """
    lines = []
    for file in sorted(folder.iterdir()):
        if file in read or file.name == SINGLE:
            continue
        if file.is_dir():
            lines += [f"{below} {_ADAPTER}" for below in _adapters(file)]
        elif reason := _in_the_way(file.name):
            lines.append(f"{file} {reason}")
        elif file.suffix == ".safetensors" and not _is_golden(file):
            lines.append(
                f"{file} is none of the files that the weights are read from; move it away to go "
                "without it"
            )
    return lines


def adapter_weights(folder: Path) -> list[str]:
    """A line for each file of adapter weights in a folder that gives config and tokenizer."""
    return [
        f"{file} {_ADAPTER}"
        for file in sorted(folder.iterdir())
        if any(fnmatch(file.name, pattern) for pattern in _ADAPTER_WEIGHTS)
    ]


def unread(folder: Path) -> list[str]:
    """Names of weights in forms that are never read; they may be those of the model again."""
    return sorted(file.name for file in folder.iterdir() if file.name.endswith(_WEIGHTS[1:]))


def _in_the_way(name: str) -> str | None:
    return next((line for pattern, line in _IN_THE_WAY.items() if fnmatch(name, pattern)), None)


def _adapters(folder: Path) -> list[Path]:
    try:
        names = sorted(folder.iterdir())
    except OSError:
        return []
    return [file for file in names if any(fnmatch(file.name, pattern) for pattern in _BELOW)]


def _is_golden(file: Path) -> bool:
    """Is it the reference of ``grove verify``, and no weights?"""
    try:
        return all(map(is_golden, read_header(file)))
    except ValueError:
        return False
