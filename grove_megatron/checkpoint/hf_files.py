"""Read the safetensors of a Hugging Face model folder by tensor name."""

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class HfTensors:
    """All tensors of a folder, read one at a time.

    The files are those Hugging Face loads: the ones the index names, or ``model.safetensors``.

    Raises:
        ValueError: no such file, a file the index names is missing, or a tensor is not where the
            index says.
    """

    def __init__(self, folder: Path):
        self._file_of = _indexed(folder) if (folder / INDEX).is_file() else _single(folder)

    def names(self) -> set[str]:
        return set(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        with safe_open(self._file_of[name], framework="pt") as opened:
            return tuple(opened.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """One tensor, in the dtype and shape of the file."""
        with safe_open(self._file_of[name], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor


def _single(folder: Path) -> dict[str, Path]:
    file = folder / SINGLE
    if not file.is_file():
        raise ValueError(f"--hf ({folder}) has neither {INDEX} nor {SINGLE}; name a model folder")
    return dict.fromkeys(_names_in(file), file)


def _indexed(folder: Path) -> dict[str, Path]:
    weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    files = {name: folder / file for name, file in weight_map.items()}
    problems = []
    for file in sorted(set(files.values())):
        if not file.is_file():
            problems.append(f"{file} is missing")
            continue
        held, indexed = _names_in(file), {n for n, f in files.items() if f == file}
        problems += [f"{name} is not in {file}" for name in sorted(indexed - held)]
        problems += [f"{name} in {file} is not in the index" for name in sorted(held - indexed)]
    if problems:
        raise ValueError(f"{folder / INDEX} does not describe its files: " + "; ".join(problems))
    return files


def _names_in(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as opened:
        return set(opened.keys())
