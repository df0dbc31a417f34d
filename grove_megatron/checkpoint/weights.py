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


# More of them than this are no option that somebody types.
_MOST_SKIPPED = 4
# As many tensors of one wrong dtype are said in one line.
_MOST_OF_A_DTYPE = 8


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

    @property
    def shown(self) -> str:
        """The line, with the option that does without the tensors."""
        if not self.tensors:
            return self.line
        if len(self.tensors) > _MOST_SKIPPED:
            return f"{self.line}; --skip of each of its {len(self.tensors)} tensors writes zeros"
        return f"{self.line}; --skip {' --skip '.join(self.tensors)} does without"

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
    """The dtype that most tensors have, by its name in ``DTYPES``."""
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
    expected: Mapping[str, Shape],
    found: Mapping[str, TensorInfo],
    skip: frozenset[str],
    can_skip: bool = True,
) -> list[str]:
    """Missing, unexpected and wrong-shape tensors and dtypes nobody trains in, one line each.

    Args:
        expected: shapes of the model's tensors.
        found: what the source has.
        skip: names to say nothing about.
        can_skip: has the command ``--skip``, which the lines are to name?
    """
    problems = []
    of_dtype: dict[str, list[str]] = {}
    for name in sorted((expected.keys() | found.keys()) - skip):
        option = f"--skip {name}" if can_skip else ""
        if name not in found:
            lifted = f", or {option}" if option else ""
            problems.append(f"{name} (absent) is needed by the model; add it{lifted}")
            continue
        where = f"{name} in {found[name].origin}"
        if name not in expected:
            lifted = f"{option} drops it" if option else "remove it"
            problems.append(f"{where} is not known to the model; {lifted}")
            continue
        if found[name].shape != expected[name]:
            lifted = f"; {option} writes zeros" if option else ""
            problems.append(
                f"{where} has shape {list(found[name].shape)}, not {list(expected[name])} as the "
                f"config says{lifted}"
            )
        if found[name].dtype not in DTYPES:
            of_dtype.setdefault(found[name].dtype, []).append(name)
    return problems + [
        line
        for dtype, names in of_dtype.items()
        for line in _wrong_dtype(dtype, names, found, can_skip)
    ]


def _wrong_dtype(
    dtype: str, names: list[str], found: Mapping[str, TensorInfo], can_skip: bool
) -> list[str]:
    handled = f"dtype {dtype}, not one of {', '.join(DTYPES)}"
    if len(names) > _MOST_OF_A_DTYPE:
        first = f"{names[0]} in {found[names[0]].origin}"
        return [f"{first} and {len(names) - 1} other tensors have {handled}; convert them first"]
    return [
        f"{name} in {found[name].origin} has {handled}; convert it"
        + (f", or --skip {name} writes zeros" if can_skip else "")
        for name in names
    ]
