"""Read and write safetensors files tensor by tensor.

The library maps whole files and wants a whole file's tensors to write one, and its errors name
neither file nor tensor. What is here reads headers, and single tensors with errors that name them,
and streams a file out; the format is eight bytes of length, a JSON header, and the tensors.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from .config_keys import brief
from .durable import DurableFile
from .mapped import MappedFile
from .transforms import Shape
from .weights import DTYPES, ConversionError

# The library's own limit: a longer header is a damaged length.
MAX_HEADER = 100_000_000
# Bytes of one entry; other types than those of weights are told apart from damage.
_SIZES = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("I32", "U32"), 4),
    **dict.fromkeys(("I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
NAME_OF = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its dtype as written, its shape, and its bytes' place in the file."""

    dtype: str
    shape: Shape
    start: int
    end: int


def read_header(file: Path) -> dict[str, Entry]:
    """All tensors of a file.

    Raises:
        ValueError: the file cannot be read, or its header does not describe it; names the file
            and, where one is at fault, the tensor.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise ValueError(
                    f"{file} ({size} bytes) is not a safetensors file, or was cut short: its "
                    f"header claims {length} bytes"
                )
            text = opened.read(length)
    except FileNotFoundError as error:
        raise ValueError(f"{file} is missing") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    raw = _parsed(file, text)
    raw.pop("__metadata__", None)
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    for name, value in raw.items():
        try:
            entries[name] = _entry(file, name, value, 8 + length)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ConversionError(problems)
    _check_places(file, entries, 8 + length, size)
    return entries


def _parsed(file: Path, text: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} has a damaged header: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{file} has a damaged header: it is not a JSON object")
    return raw


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{', '.join(twice)} is there twice")
    return found


def _entry(file: Path, name: str, value: Any, begin: int) -> Entry:
    try:
        dtype, shape, (start, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        numbers = (*shape, start, end)
        sound = all(isinstance(n, int) and n >= 0 for n in numbers) and isinstance(dtype, str)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"{file}: {name} has a damaged header entry: {brief(value)}")
    if dtype not in _SIZES:
        raise ValueError(f"{file}: {name} has an unknown dtype ({dtype})")
    if _SIZES[dtype] * prod(shape) != end - start:
        raise ValueError(
            f"{file}: {name}, {dtype} {list(shape)}, needs {_SIZES[dtype] * prod(shape)} bytes, "
            f"and its header entry has {end - start}"
        )
    return Entry(dtype, shape, begin + start, begin + end)


def _check_places(file: Path, entries: dict[str, Entry], begin: int, size: int) -> None:
    """The tensors follow each other without a hole from the header to the end of the file."""
    at = begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.end > size:
            raise ValueError(
                f"{file} ({size} bytes) was cut short: {name} ends at byte {entry.end}"
            )
        if entry.start != at:
            what = "overlaps the tensor before it" if entry.start < at else "follows a hole"
            raise ValueError(f"{file}: {name} at byte {entry.start} {what}, which ends at {at}")
        at = entry.end
    if at != size:
        raise ValueError(f"{file} ({size} bytes) goes on after its last tensor (byte {at})")


def read_tensor(mapped: MappedFile, file: Path, name: str, entry: Entry) -> Tensor:
    """One tensor, a view of the file that must not be written.

    Raises:
        ValueError: the bytes cannot be read; names file and tensor.
    """
    try:
        return mapped.tensor(entry.start, DTYPES[entry.dtype], entry.shape)
    except (OSError, EOFError) as error:
        raise ValueError(f"{file}: {name} cannot be read: {error}") from error


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


class SafetensorsWriter:
    """Write one file, tensors in the order in which they were announced.

    Args:
        file: to write; must not exist.
        tensors: (name, dtype, shape) of everything that will come.
    """

    def __init__(self, file: Path, tensors: Iterable[tuple[str, torch.dtype, Shape]]):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, dtype, shape in tensors:
            end = at + dtype.itemsize * torch.Size(shape).numel()
            header[name] = {
                "dtype": NAME_OF[dtype],
                "shape": list(shape),
                "data_offsets": [at, end],
            }
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._left = at
        self._file = DurableFile(file)
        self._file.write(len(text).to_bytes(8, "little") + text)

    def add(self, tensor: Tensor) -> None:
        """The next tensor, or the next piece of it."""
        data = bytes_of(tensor.contiguous())
        self._left -= len(data)
        assert self._left >= 0, "more than was announced"
        self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            assert self._left == 0, "less than was announced"
        self._file.__exit__(kind, error, trace)
