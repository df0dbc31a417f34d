"""Read and write a Megatron distributed checkpoint (``torch_dist``) without a process group.

The format is torch.distributed.checkpoint's: files ``*.distcp`` of ``torch.save`` records, and a
pickled ``.metadata`` that says which record is which region of which tensor. Megatron adds
``metadata.json`` and one record of everything that is not sharded.
"""

import io
import json
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.serialization import get_crc32_options, set_crc32_options

from .durable import DurableFile, sync
from .layout import COMPLETE, INDEX
from .mapped import MappedFile
from .pickles import (
    ON_PURPOSE,
    NotData,
    admitted,
    check_states,
    is_trusted,
    read_metadata,
    read_objects,
    unknown_names,
    why,
)
from .transforms import Shape

COMMON = "common_state/shard_0_1"
# Of Megatron before 0.19, in place of that record.
LEGACY_COMMON = "common.pt"
FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}


class TorchDistReader:
    """The tensors of one checkpoint directory, by key and region.

    Nothing that came with it is run, whatever is in it.

    Args:
        folder: the directory.
        megatrons: has it what Megatron's ``torch_dist`` adds? Without, it is what torch writes.

    Raises:
        ValueError: the directory is not such a checkpoint, or its metadata cannot be read.
    """

    def __init__(self, folder: Path, *, megatrons: bool = True):
        self.folder = folder
        if megatrons:
            _check_format(folder)
        metadata = read_metadata(folder / INDEX)
        self.tensors: dict[str, TensorStorageMetadata] = {
            key: value
            for key, value in metadata.state_dict_metadata.items()
            if isinstance(value, TensorStorageMetadata)
        }
        self._records: Mapping[MetadataIndex, _StorageInfo] = metadata.storage_data
        self._open: dict[Path, MappedFile] = {}
        self._plain: dict[bytes, tuple[torch.dtype, Shape]] = {}
        self._chunks_at: dict[tuple[str, int], dict[Shape | None, list[ChunkStorageMetadata]]] = {}
        self._sizes: dict[Path, int | None] = {}

    def shape(self, key: str) -> Shape:
        return tuple(self.tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        return self.tensors[key].properties.dtype

    def files(self) -> list[str]:
        """Names of all files with records."""
        return sorted({record.relative_path for record in self._records.values()})

    def short_files(self) -> list[str]:
        """Files that are not there, or end before their last record does; one line each."""
        ends: dict[str, int] = {}
        for record in self._records.values():
            end = record.offset + record.length
            ends[record.relative_path] = max(end, ends.get(record.relative_path, 0))
        problems = []
        for name, end in sorted(ends.items()):
            size = self._size(self.folder / name)
            if size is None:
                problems.append(f"{self.folder / name} (absent) should have {end} bytes")
            elif size < end:
                problems.append(
                    f"{self.folder / name} ({size} bytes) was cut short: its last record ends at "
                    f"byte {end}"
                )
        return problems

    def problems(self, key: str, place: Shape = ()) -> list[str]:
        """What is wrong with a tensor's records, as far as it shows without reading them.

        Args:
            key: of the tensor.
            place: index in its leading axes of the part to look at; by default all of it.
        """
        problems = []
        shape = (*(1 for _ in place), *self.shape(key)[len(place) :])
        begin = (*place, *(0 for _ in shape[len(place) :]))
        covered = 0
        for chunk in self._near(key, place):
            overlap = _overlap(chunk, begin, shape)
            if overlap is None:
                continue
            covered += _count(overlap)
            record = self._record(key, chunk)
            where = f"{key} {list(chunk.offsets)}"
            if record is None:
                problems.append(f"{where} is in no file of {self.folder}")
                continue
            file = self.folder / record.relative_path
            size = self._size(file)
            if size is None:
                problems.append(f"{file} (absent) should have {where}")
            elif record.offset + record.length > size:
                problems.append(
                    f"{file} ({size} bytes) was cut short: {where} ends at byte "
                    f"{record.offset + record.length}"
                )
        if covered < prod(shape):
            part = f"{key} {list(begin)}" if place else key
            problems.append(f"{part} in {self.folder} has {covered} of {prod(shape)} elements")
        return problems

    def _size(self, file: Path) -> int | None:
        if file not in self._sizes:
            self._sizes[file] = file.stat().st_size if file.is_file() else None
        return self._sizes[file]

    def region(self, key: str, place: Shape, shape: Shape, first_row: int = 0) -> Tensor:
        """A part of a tensor; it may be a view of a file, and must not be written.

        Args:
            key: of the tensor.
            place: index in its leading axes.
            shape: of the part, in the others.
            first_row: where the part begins in the first of those; it begins at 0 in the rest.

        Raises:
            ValueError: a record cannot be read; names the file.
        """
        begin = (*place, first_row, *(0 for _ in shape[1:]))
        size = (*(1 for _ in place), *shape)
        out: Tensor | None = None
        filled: list[tuple[slice, ...]] = []
        for chunk in self._near(key, place):
            overlap = _overlap(chunk, begin, size)
            if overlap is None:
                continue
            part = self._chunk(key, chunk)[_relative(overlap, chunk.offsets)]
            if tuple(part.shape) == size:
                return part.reshape(shape)
            if out is None:
                out = torch.empty(size, dtype=part.dtype)
            out[_relative(overlap, begin)] = part
            filled.append(overlap)
        if out is None or not _covers(filled, prod(size)):
            raise ValueError(
                f"{self.folder}: {key} has no record of all of {list(begin)} to "
                f"{[b + n for b, n in zip(begin, size, strict=True)]}"
            )
        return out.reshape(shape)

    def _near(self, key: str, place: Shape) -> list[ChunkStorageMetadata]:
        """The chunks that may hold ``place``: an entry of all experts has thousands of others."""
        if (key, len(place)) not in self._chunks_at:
            index: dict[Shape | None, list[ChunkStorageMetadata]] = {}
            for chunk in self.tensors[key].chunks:
                leading = tuple(chunk.sizes[: len(place)])
                one = all(n == 1 for n in leading)
                at = tuple(chunk.offsets[: len(place)]) if one else None
                index.setdefault(at, []).append(chunk)
            self._chunks_at[key, len(place)] = index
        index = self._chunks_at[key, len(place)]
        return index.get(place, []) + index.get(None, [])

    def _record(self, key: str, chunk: ChunkStorageMetadata) -> Any:
        return self._records.get(MetadataIndex(key, chunk.offsets))

    def _chunk(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        record = self._record(key, chunk)
        file = self.folder / record.relative_path
        try:
            loaded = self._loaded(self._mapped(record), record)
        except Exception as error:  # a pickle can fail in any way
            raise ValueError(
                f"{file}: {key} {list(chunk.offsets)} cannot be read: {why(error)}"
            ) from error
        if not isinstance(loaded, Tensor) or tuple(loaded.shape) != tuple(chunk.sizes):
            raise ValueError(
                f"{file}: {key} {list(chunk.offsets)} is not a tensor of {list(chunk.sizes)}"
            )
        return loaded

    def _loaded(self, file: MappedFile, record: Any) -> object:
        """What ``torch.load`` makes of a record, without its copy of the entries where it can be.

        The pickle in a record says dtype, shape and strides. Those of a kind of tensor are the same
        bytes, so torch reads the first of them, and of the others the entries are mapped.
        """
        data = file.window(record.offset, record.length)
        if len(data) < record.length:
            raise EOFError("the file ends before it")
        members = {
            info.filename.partition("/")[2]: info
            for info in zipfile.ZipFile(_Window(data)).infolist()
        }
        entries = members.get("data/0")
        if entries is not None:
            file.populate(record.offset, record.length)
            _check_crc(data, entries)
        pickled = bytes(_stored(data, members["data.pkl"]))
        if pickled not in self._plain:
            loaded = torch.load(
                cast(BinaryIO, _Window(data)), map_location="cpu", weights_only=True
            )
            if _is_plain(loaded) and entries is not None:
                self._plain[pickled] = loaded.dtype, tuple(loaded.shape)
            return loaded
        dtype, shape = self._plain[pickled]
        assert entries is not None
        found = torch.frombuffer(_stored(data, entries), dtype=dtype)
        return found.reshape(shape)

    def common(self) -> dict[str, Any]:
        """Everything that is not sharded: arguments, iteration, ...

        Objects of classes that ``torch.load`` does not know, such as Megatron's enums, become
        :class:`.pickles.Opaque`: no code of theirs runs or is imported.

        Raises:
            ValueError: it cannot be read.
        """
        legacy = self.folder / LEGACY_COMMON
        if legacy.is_file():
            state = read_objects(legacy, str(legacy))
        else:
            state = self.saved_object(COMMON, f"{COMMON} (arguments and iteration)")
            state = state[0] if isinstance(state, list) and state else state
        if not isinstance(state, dict):
            raise ValueError(f"{self.folder}: {COMMON} cannot be read: it is no table")
        return state

    def saved_object(self, key: str, shown: str | None = None) -> Any:
        """An entry that is no tensor, as :func:`.pickles.read_objects` reads it.

        Raises:
            ValueError: it is not there or cannot be read; calls it ``shown``.
        """
        where = f"{self.folder}: {shown or key}"
        record = self._records.get(MetadataIndex(key))
        if record is None:
            raise ValueError(f"{where} cannot be read: there is no such record")
        try:
            with (self.folder / record.relative_path).open("rb") as file:
                saved = _bytes(file, record)
        except (OSError, ValueError, OverflowError) as error:
            raise ValueError(f"{where} cannot be read: {error}") from error
        return read_objects(io.BytesIO(saved), where)

    def _mapped(self, record: _StorageInfo) -> MappedFile:
        file = self.folder / record.relative_path
        if file not in self._open:
            self._open[file] = MappedFile(file)
        return self._open[file]

    def foreign_objects(self, keys: Iterable[str] | None = None) -> list[str]:
        """Objects that Megatron must not load, one line each; none where the user trusts them.

        Megatron unpickles them without limits. Whatever the classes of its own that it admits in
        ``torch.load`` can express has no code in it.

        Args:
            keys: to look at; None: all that there are.
        """
        return [] if is_trusted() else list(self._foreign_objects(keys))

    def _foreign_objects(self, keys: Iterable[str] | None) -> Iterator[str]:
        from megatron.core.safe_globals import SAFE_GLOBALS, SafeUnpickler

        in_states = SafeUnpickler._SAFE_CLASSES

        wanted = None if keys is None else set(keys)
        harmless: set[tuple[bytes, bool]] = set()
        with admitted([*SAFE_GLOBALS]):
            legacy = self.folder / LEGACY_COMMON
            if legacy.is_file() and (names := unknown_names(legacy)):
                yield f"{legacy} is not to be loaded: {NotData(names)}, {ON_PURPOSE}"
            # A tensor that is not one is refused by torch.
            objects = [
                (record.relative_path, record.offset, index.fqn, record)
                for index, record in self._records.items()
                if index.fqn not in self.tensors and (wanted is None or index.fqn in wanted)
            ]
            for name, of_file in groupby(sorted(objects, key=lambda o: o[:2]), lambda o: o[0]):
                file = self.folder / name
                try:
                    opened = file.open("rb")
                except (OSError, ValueError) as error:
                    yield f"{file} cannot be read: {error}"
                    continue
                with opened:
                    for _, _, key, record in of_file:
                        states = in_states if "_extra_state" in key else None
                        if problem := self._foreign(opened, record, harmless, states):
                            yield f"{file}: {key} is not to be loaded: {problem}"

    def _foreign(
        self,
        file: BinaryIO,
        record: _StorageInfo,
        harmless: set[tuple[bytes, bool]],
        in_states: Any | None,
    ) -> str | None:
        """Why an object is none that Megatron saves, or None; there are thousands of the same."""
        try:
            saved = _bytes(file, record)
            # What is harmless elsewhere may be no state.
            looked_at = saved, in_states is not None
            if looked_at in harmless:
                return None
            if names := unknown_names(io.BytesIO(saved)):
                raise NotData(names)
            loaded = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
            if in_states is not None:
                check_states(loaded, in_states)
        except NotData as error:
            return f"{error}, {ON_PURPOSE}"
        except Exception as error:  # a pickle can fail in any way
            return f"it cannot be read as data: {why(error)}"
        harmless.add(looked_at)
        return None


def _bytes(file: BinaryIO, record: _StorageInfo) -> bytes:
    """Of an object, which is small. Not mapped as tensors are: a map that could be written counts
    as memory in full where the system promises no more than it has."""
    there = os.fstat(file.fileno()).st_size - record.offset
    file.seek(record.offset)
    return file.read(max(0, min(record.length, there)))


def _check_format(folder: Path) -> None:
    try:
        config = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        backend = config["sharded_backend"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} is not a complete Megatron distributed checkpoint: {COMPLETE} "
            f"cannot be read ({error}); name one that was saved with --ckpt-format torch_dist"
        ) from error
    if backend != FORMAT["sharded_backend"]:
        raise ValueError(f"{folder} has format {backend}, not torch_dist")


def _stored(data: memoryview, member: zipfile.ZipInfo) -> memoryview:
    """The bytes of a member of an archive in memory; torch does not compress."""
    assert member.compress_type == zipfile.ZIP_STORED, "torch stores"
    name_length, extra_length = struct.unpack_from("<HH", data, member.header_offset + 26)
    begin = member.header_offset + 30 + name_length + extra_length
    return data[begin : begin + member.file_size]


def _check_crc(data: memoryview, member: zipfile.ZipInfo) -> None:
    """Raise ValueError if bytes are not those that were saved; torch.load does not look."""
    # 0: none was taken, see RecordWriter.
    if member.CRC and zlib.crc32(_stored(data, member)) != member.CRC:
        raise ValueError("its bytes do not have the checksum that they were saved with")


def _is_plain(loaded: object) -> bool:
    """Is it a tensor that is all of its storage, in order?"""
    return (
        isinstance(loaded, Tensor)
        and loaded.is_contiguous()
        and loaded.untyped_storage().nbytes() == loaded.nbytes
    )


class _Window(io.RawIOBase):
    """Bytes in memory as a file, not copied."""

    def __init__(self, data: memoryview):
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._data)}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        part = self._data[self._at : self._at + len(target)]
        target[: len(part)] = part
        self._at += len(part)
        return len(part)


def _overlap(chunk: ChunkStorageMetadata, begin: Shape, size: Shape) -> tuple[slice, ...] | None:
    """Where a chunk and a region meet, in the coordinates of the whole tensor."""
    meet = [
        slice(max(o, b), min(o + n, b + m))
        for o, n, b, m in zip(chunk.offsets, chunk.sizes, begin, size, strict=True)
    ]
    return None if any(s.start >= s.stop for s in meet) else tuple(meet)


def _covers(parts: list[tuple[slice, ...]], count: int) -> bool:
    """Are these ``count`` elements? Parts that meet do not count: nobody writes such records."""
    apart = all(
        any(a.stop <= b.start or b.stop <= a.start for a, b in zip(one, other, strict=True))
        for i, one in enumerate(parts)
        for other in parts[:i]
    )
    return apart and sum(map(_count, parts)) == count


def _count(part: tuple[slice, ...]) -> int:
    """Elements of a region."""
    return prod(s.stop - s.start for s in part)


def _relative(region: tuple[slice, ...], begin: Iterable[int]) -> tuple[slice, ...]:
    return tuple(slice(s.start - b, s.stop - b) for s, b in zip(region, begin, strict=True))


@dataclass(frozen=True)
class Record:
    """What is where in a file.

    Args:
        key: the tensor, or the object.
        file: its name.
        start, length: the record's bytes.
        offsets, shape: the region; None for an object.
        dtype: of the region, without ``torch.``; None for an object.
    """

    key: str
    file: str
    start: int
    length: int
    offsets: Shape | None = None
    shape: Shape | None = None
    dtype: str | None = None

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "Record":
        """From JSON, which has lists for tuples."""
        for name in ("offsets", "shape"):
            saved[name] = None if saved[name] is None else tuple(saved[name])
        return cls(**saved)


class RecordWriter:
    """Write one file of records; ``records`` says what it holds.

    Args:
        file: to write; must not exist.
        name: that it will have in the end.
    """

    def __init__(self, file: Path, name: str):
        self.records: list[Record] = []
        self._name = name
        self._file = DurableFile(file)

    def add(self, key: str, offsets: Shape, tensor: Tensor) -> None:
        """A region of tensor ``key``; of as many dimensions as the tensor has."""
        if tensor.untyped_storage().nbytes() != tensor.nbytes:
            # torch.save writes the whole storage that a view is of.
            tensor = tensor.clone()
        dtype = str(tensor.dtype).removeprefix("torch.")
        self._write(key, tensor, offsets=offsets, shape=tuple(tensor.shape), dtype=dtype)

    def add_object(self, key: str, content: object) -> None:
        self._write(key, content)

    def _write(self, key: str, content: object, **region: Any) -> None:
        start = self._file.tell()
        # The manifest has a checksum of every tensor; that of the archive would cost as much again.
        checksums = get_crc32_options()
        set_crc32_options(False)
        try:
            torch.save(content, cast(BinaryIO, self._file))
        finally:
            set_crc32_options(checksums)
        length = self._file.tell() - start
        self.records.append(Record(key, self._name, start, length, **region))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, trace)


def write_metadata(folder: Path, shapes: Mapping[str, Shape], records: Iterable[Record]) -> None:
    """Complete a checkpoint directory whose files are written.

    Args:
        folder: the directory.
        shapes: of every tensor.
        records: of all files.
    """
    entries: dict[str, Any] = {}
    places: dict[MetadataIndex, Any] = {}
    for record in records:
        # A pickle shows which strings are one object, and those of a journal are not.
        key, file = sys.intern(record.key), sys.intern(record.file)
        info = _StorageInfo(file, record.start, record.length)
        if record.offsets is None:
            entries[key] = BytesStorageMetadata()
            places[MetadataIndex(key)] = info
            continue
        assert record.shape is not None
        assert record.dtype is not None
        if key not in entries:
            properties = TensorProperties(dtype=getattr(torch, record.dtype))
            entries[key] = TensorStorageMetadata(properties, torch.Size(shapes[key]), [])
        chunk = ChunkStorageMetadata(torch.Size(record.offsets), torch.Size(record.shape))
        entries[key].chunks.append(chunk)
        places[MetadataIndex(key, chunk.offsets)] = info
    metadata = Metadata(state_dict_metadata=entries, storage_data=places)
    with (folder / INDEX).open("wb") as opened:
        pickle.dump(metadata, opened)
        sync(opened)
    with (folder / COMPLETE).open("wb") as opened:
        opened.write(json.dumps(FORMAT).encode())
        sync(opened)
