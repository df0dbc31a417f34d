"""The safetensors of a Hugging Face model folder, by tensor name."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from ..model.families.family import Family
from .mapped import MappedFile
from .safetensors_io import Entry, read_header, read_tensor
from .weights import DTYPES, ConversionError, Problem, TensorInfo, identity_of

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# transformers 5 can save the experts of a layer as two tensors, [E, 2F, H] and [E, H, F].
_FUSED = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<which>gate_up_proj|down_proj)")


@dataclass(frozen=True)
class _Stored:
    """A tensor of the model: (a part of) one in a file."""

    file: Path
    stored_name: str
    entry: Entry

    @property
    def origin(self) -> str:
        return self.file.name


class HfWeights:
    """All tensors of a folder, read one at a time.

    The files are those Hugging Face loads: the ones the index names, or ``model.safetensors``.
    Fused expert tensors appear as the tensors of the single experts.

    Args:
        folder: of the model.
        family: that the model is of; None: one whose files have the names of memory.

    Attributes:
        problems: what is not as the index says, and tensors that are there twice.

    Raises:
        ValueError: every file that is missing or damaged.
    """

    def __init__(self, folder: Path, family: Family | None = None):
        self._file_name = str if family is None else family.file_name
        self._tensors: dict[str, _Stored] = {}
        self._open: tuple[Path, MappedFile] | None = None
        self._folder = folder
        indexed = _read_index(folder) if (folder / INDEX).is_file() else None
        self._files = sorted(set(indexed.values())) if indexed else [_single(folder)]
        self.problems: list[Problem] = []
        # Of files that cannot be read: without them, most tensors would be missing.
        damage: list[str] = []
        for file in self._files:
            try:
                entries = read_header(file)
            except ConversionError as error:
                damage += error.problems
                continue
            except ValueError as error:
                damage.append(str(error))
                continue
            if indexed is not None:
                self.problems += _index_problems(folder, file, indexed, set(entries))
            for name, entry in entries.items():
                self.problems += self._add(file, name, entry)
        if damage:
            raise ConversionError([problem.line for problem in self.problems] + damage)
        if indexed and folder / SINGLE not in self._files and (folder / SINGLE).exists():
            beside = f"{folder / SINGLE} is there beside {INDEX}, which does not name it"
            self.problems.append(Problem(f"{beside}; remove one"))

    def _add(self, file: Path, stored_name: str, entry: Entry) -> list[Problem]:
        problems = []
        for held, part in _parts(stored_name, entry):
            name = self._file_name(held)
            if name in self._tensors:
                first = self._tensors[name]
                line = (
                    f"{name} is there twice: in {first.file} ({first.stored_name}) and {file} "
                    f"({stored_name})"
                )
                problems.append(Problem(line, (name,)))
            self._tensors[name] = _Stored(file, stored_name, part)
        return problems

    @property
    def files(self) -> list[Path]:
        """Where the tensors are."""
        return self._files

    def infos(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(stored.entry.shape, stored.entry.dtype, stored.origin)
            for name, stored in self._tensors.items()
        }

    def read(self, name: str) -> Tensor:
        stored = self._tensors[name]
        if self._open is None or self._open[0] != stored.file:
            try:
                self._open = stored.file, MappedFile(stored.file)
            except (OSError, ValueError) as error:
                raise ValueError(f"{stored.file}: {name} cannot be read: {error}") from error
        return read_tensor(self._open[1], stored.file, name, stored.entry)

    def drop_copy(self, name: str, of: str) -> bool:
        """Forget a tensor that has the bytes of another one; False if it has not, or is not there.

        Raises:
            ValueError: one of them cannot be read.
        """
        if not {name, of} <= self._tensors.keys():
            return False
        copy, first = self._tensors[name].entry, self._tensors[of].entry
        if (copy.dtype, copy.shape) != (first.dtype, first.shape) or copy.dtype not in DTYPES:
            return False
        # As bytes: NaN is not equal to itself.
        if not torch.equal(self.read(name).view(torch.uint8), self.read(of).view(torch.uint8)):
            return False
        del self._tensors[name]
        return True

    def identity(self) -> dict[str, object]:
        return identity_of(self._folder, self._files)


def _parts(name: str, entry: Entry) -> list[tuple[str, Entry]]:
    """A stored tensor as the tensors of the model: itself, or those of the single experts."""
    fused = _FUSED.fullmatch(name)
    projections = ["down_proj"]
    if fused is not None and fused["which"] == "gate_up_proj":
        projections = ["gate_proj", "up_proj"]
    # What does not fall into equal parts stays as it is, and is then not known to the model.
    if fused is None or len(entry.shape) != 3 or entry.shape[1] % len(projections):
        return [(name, entry)]
    experts, rows, columns = entry.shape
    names = [f"{fused['experts']}.{e}.{p}.weight" for e in range(experts) for p in projections]
    size = (entry.end - entry.start) // max(len(names), 1)
    shape = (rows // len(projections), columns)
    starts = [entry.start + i * size for i in range(len(names))]
    return [
        (name, Entry(entry.dtype, shape, start, start + size))
        for name, start in zip(names, starts, strict=True)
    ]


def _single(folder: Path) -> Path:
    file = folder / SINGLE
    if not file.is_file():
        if pickles := sorted(folder.glob("pytorch_model*.bin")):
            raise ValueError(
                f"--hf ({folder}) has its weights in {pickles[0].name}, a pickle, which is not "
                "read; save them as safetensors (in transformers save_pretrained)"
            )
        raise ValueError(f"--hf ({folder}) has neither {INDEX} nor {SINGLE}; name a model folder")
    return file


def _read_index(folder: Path) -> dict[str, Path]:
    file = folder / INDEX
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        outside = [shard for shard in weight_map.values() if not _is_below(shard)]
        if outside:
            raise ValueError(f"{outside[0]} is outside the folder")
        return {name: folder / shard for name, shard in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is not an index of shards: {error!r}") from error


def _is_below(shard: str) -> bool:
    path = PurePosixPath(shard)
    return not path.is_absolute() and ".." not in path.parts


def _index_problems(
    folder: Path, file: Path, indexed: Mapping[str, Path], held: set[str]
) -> list[Problem]:
    here = {name for name, shard in indexed.items() if shard == file}
    index = folder / INDEX
    lines = {name: f"{name} is not in {file}, where {index} says it is" for name in here - held}
    lines |= {name: f"{name} in {file} is not in {index}" for name in held - here}
    return [Problem(line, (name,)) for name, line in sorted(lines.items())]
