"""What every source of weights looks like: Hugging Face names, whichever format is behind them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .transforms import Shape

# What weights are kept in, by their names in safetensors headers.
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class ConversionError(ValueError):
    """All that is wrong with weights or with the place to write them, one line each."""

    def __init__(self, problems: list[str]):
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Problem:
    """What is wrong with weights, as their headers show it.

    Args:
        line: for the user.
        tensors: names that make it none if all of them are skipped; without names it cannot be.
    """

    line: str
    tensors: tuple[str, ...] = ()

    def remains(self, skip: frozenset[str]) -> bool:
        return not self.tensors or not skip.issuperset(self.tensors)


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read.

    Args:
        shape: its shape.
        dtype: as the format spells it.
        origin: where it is, for messages.
    """

    shape: Shape
    dtype: str
    origin: str


class Weights(Protocol):
    """A model's weights by Hugging Face name."""

    def infos(self) -> Mapping[str, TensorInfo]:
        """All tensors, from headers alone."""

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, in its dtype; the caller owns it or must not write to it.

        Raises:
            ValueError: it cannot be read; names the file.
        """

    def identity(self) -> dict[str, object]:
        """What changes when the content does: files, sizes, times. JSON."""


def usual_dtype(infos: Mapping[str, TensorInfo]) -> str:
    """The dtype that most tensors have, by its name in :data:`DTYPES`."""
    names = [info.dtype for info in infos.values() if info.dtype in DTYPES]
    return max(sorted(set(names)), key=names.count, default="F32")


def identity_of(folder: Path, files: Iterable[Path]) -> dict[str, object]:
    """What changes when files do, for :meth:`Weights.identity`."""
    stats = [(file.name, file.stat()) for file in files]
    return {
        "folder": str(folder.resolve()),
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
    }


def mismatches(
    expected: Mapping[str, Shape], found: Mapping[str, TensorInfo], skip: frozenset[str]
) -> list[str]:
    """Missing, unexpected and wrong-shape tensors and dtypes nobody trains in, one line each.

    Args:
        expected: shapes of the model's tensors.
        found: what the source has.
        skip: names to say nothing about.
    """
    problems = []
    for name in sorted((expected.keys() | found.keys()) - skip):
        if name not in found:
            problems.append(f"{name} (absent) is needed by the model; add it, or --skip {name}")
        elif name not in expected:
            where = found[name].origin
            problems.append(f"{name} in {where} is not known to the model; --skip {name} drops it")
        else:
            problems += _wrong(name, expected[name], found[name])
    return problems


def _wrong(name: str, shape: Shape, found: TensorInfo) -> list[str]:
    problems = []
    if found.shape != shape:
        problems.append(
            f"{name} in {found.origin} has shape {list(found.shape)}, not {list(shape)} as the "
            "config says"
        )
    if found.dtype not in DTYPES:
        problems.append(
            f"{name} in {found.origin} has dtype {found.dtype}, not one of {', '.join(DTYPES)}"
        )
    return problems
