"""Pickles of other people, read so that nothing in them runs.

A pickle is a list of functions to call, of any module. What is read here may name classes that hold
data, and nothing else.
"""

import builtins
import io
import os
import pickle
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from argparse import Namespace
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

# All that torch.distributed.checkpoint and Megatron write to ``.metadata``; beside dtypes.
_OF_METADATA = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "BytesStorageMetadata"),
        *("TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    # The plans of all ranks, with --ckpt-assume-constant-structure.
    "torch.distributed.checkpoint.planner": {
        *("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"),
    },
    # torch before 2.3
    "torch.distributed._shard.sharded_tensor.metadata": {"TensorProperties", "MEM_FORMAT_ENCODING"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath"},
}

# Of the standard library, what holds no code; by module.
_DATA_MODULES = frozenset(
    {
        *("argparse", "types", "pathlib", "pathlib._local", "collections", "datetime", "decimal"),
        *("fractions", "uuid", "enum", "signal", "copyreg", "_codecs", "_io", "io"),
    }
)

TRUST = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""The variable by which a user tells torch to unpickle whatever there is."""
ON_PURPOSE = f"or set {TRUST}=1 to have Megatron load it all the same"


def is_trusted() -> bool:
    """Does the user want what Megatron loads to be loaded whatever it does?"""
    return os.environ.get(TRUST, "0").lower() in ("1", "y", "yes", "true")


class NotData(ValueError):
    """A pickle names what is no data; nothing of it was run."""

    def __init__(self, names: list[str]):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        super().__init__(
            f"it names {names[0]}{more}, which is no class of a checkpoint: loading it could run "
            "any code, and nothing of it was run; take one from someone you trust"
        )


class _OldMetadata(Metadata):
    """Of Megatron up to 0.15, which has no such class any more."""


class _OldPlan:
    """The same of a rank's plan."""


_OLD_MODULE = "megatron.core.dist_checkpointing.strategies.torch"
_OF_OLD_MEGATRON = {"MCoreMetadata": _OldMetadata, "MCoreSavePlan": _OldPlan}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == _OLD_MODULE and name in _OF_OLD_MEGATRON:
            return _OF_OLD_MEGATRON[name]
        admitted = name in _OF_METADATA.get(module, ())
        if admitted or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise NotData([f"{module}.{name}"])


def read_metadata(file: Path) -> Metadata:
    """The ``.metadata`` of a checkpoint.

    Raises:
        ValueError: it cannot be read, or names what is no part of one.
    """
    try:
        with file.open("rb") as opened:
            metadata: object = _MetadataUnpickler(opened, fix_imports=False).load()
        if not _is_sound(metadata):
            raise ValueError("it is not what torch.distributed.checkpoint writes")
    except NotData as error:
        raise ValueError(f"{file} is not read: {error}") from error
    except Exception as error:  # a pickle can fail in any way
        raise ValueError(
            f"{file} cannot be read, so the checkpoint is not complete: {error}"
        ) from error
    return metadata


def _is_sound(metadata: object) -> TypeGuard[Metadata]:
    """Has everything the type that it should have, and is every file in the checkpoint's folder?"""
    return (
        isinstance(metadata, Metadata)
        and isinstance(metadata.state_dict_metadata, dict)
        and isinstance(metadata.storage_data, dict)
        and all(
            _is_tensor(value)
            for value in metadata.state_dict_metadata.values()
            if isinstance(value, TensorStorageMetadata)
        )
        and all(isinstance(index, MetadataIndex) for index in metadata.storage_data)
        and all(map(_is_place, metadata.storage_data.values()))
    )


def _is_tensor(value: TensorStorageMetadata) -> bool:
    return (
        isinstance(value.properties.dtype, torch.dtype)
        and isinstance(value.size, torch.Size)
        and all(
            isinstance(chunk.offsets, torch.Size)
            and isinstance(chunk.sizes, torch.Size)
            and len(chunk.offsets) == len(chunk.sizes) == len(value.size)
            for chunk in value.chunks
        )
    )


def _is_place(value: object) -> bool:
    return (
        isinstance(value, _StorageInfo)
        and isinstance(value.relative_path, str)
        and os.path.basename(value.relative_path) == value.relative_path
        and isinstance(value.offset, int)
        and isinstance(value.length, int)
    )


class Opaque:
    """Stands for an object whose class is not wanted; equal to nothing."""

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_objects(saved: BinaryIO | Path, where: str) -> Any:
    """``torch.load``, with an :class:`Opaque` for every object of a class that torch does not know.

    Raises:
        ValueError: it cannot be read, or it names functions of the standard library: it was made
            to run them. Begins with ``where``.
    """
    try:
        foreign = unknown_names(saved)
        if code := [name for name in foreign if _is_code(name)]:
            raise NotData(code)
        stand_ins: list[Any] = [(Opaque, name) for name in foreign if name != "argparse.Namespace"]
        with admitted([Namespace, *stand_ins]):
            on_disk = isinstance(saved, Path)
            return torch.load(saved, map_location="cpu", weights_only=True, mmap=on_disk)
    except NotData as error:
        raise ValueError(f"{where} is not read: {error}") from error
    except Exception as error:  # a pickle can fail in any way
        raise ValueError(f"{where} cannot be read: {why(error)}") from error


class _StateUnpickler(pickle.Unpickler):
    def __init__(self, saved: BinaryIO, names: Collection[tuple[str, str]]):
        super().__init__(saved)
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise NotData([f"{module}.{name}"])
        return super().find_class(module, name) if module in _CONTAINERS else Opaque


_CONTAINERS = ("builtins", "collections")


def check_states(loaded: object, names: Collection[tuple[str, str]]) -> None:
    """Look into the pickles that TransformerEngine keeps its FP8 states in, as tensors of bytes.

    Args:
        loaded: an object of a checkpoint.
        names: module and name of everything that they may name.

    Raises:
        NotData: one names something else.
    """
    if isinstance(loaded, list | tuple):
        for part in loaded:
            check_states(part, names)
    if isinstance(loaded, torch.Tensor) and loaded.dtype == torch.uint8 and loaded.numel():
        _StateUnpickler(io.BytesIO(loaded.numpy().tobytes()), names).load()


@contextmanager
def admitted(classes: list[Any]) -> Iterator[None]:
    """Have ``torch.load`` take these too.

    Not torch's ``safe_globals``, which takes away at its end what others had admitted before.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(classes)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def why(error: Exception) -> str:
    """What ``torch.load`` refused, without its advice to load it all the same."""
    if names := _NAMED(str(error)):
        return str(NotData(names))
    return str(error).partition("\n")[0]


_NAMED = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)").findall


def unknown_names(saved: BinaryIO | Path) -> list[str]:
    """What a file of ``torch.save`` names that torch does not admit, by name."""
    names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(saved))
    if not isinstance(saved, Path):
        saved.seek(0)
    return names


def _is_code(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    # torch.save names what Python 3 has renamed as Python 2 called it.
    module, attribute = NAME_MAPPING.get((module, attribute), (module, attribute))
    module = IMPORT_MAPPING.get(module, module)
    if module == "builtins":
        # getattr finds a class inside a class.
        return not isinstance(getattr(builtins, attribute, None), type) and attribute != "getattr"
    return module.partition(".")[0] in sys.stdlib_module_names and module not in _DATA_MODULES
