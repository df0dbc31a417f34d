"""The two formats to write, each as a list of files that are written one after the other."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from .checked import Plan
from .hf_files import INDEX, SINGLE
from .layout import RELEASE, TRACKER
from .safetensors_io import SafetensorsWriter
from .torch_dist import COMMON, Record, RecordWriter, write_metadata
from .transforms import Shape
from .units import Unit

Read = Callable[[str], Tensor]
# What was written, by file.
Records = Mapping[str, list[Any]]
GIB = 2**30


@dataclass(frozen=True)
class Part:
    """One file to write, and the Hugging Face tensors in it."""

    file: str
    names: tuple[str, ...]


class Sink(Protocol):
    """A format."""

    parts: list[Part]
    manifest_folder: str

    def problems(self) -> list[str]:
        """Why this format cannot hold the tensors, one line each."""

    def write(self, part: Part, path: Path, read: Read) -> list[Any]:
        """Write one file, durably; returns what ``finish`` has to know of it, JSON."""


class HfSink:
    """Shards of safetensors with an index, as Hugging Face writes them.

    Args:
        plans: what to write, in order.
        shard_bytes: the largest shard; a tensor that is larger has one of its own.
        fused: experts of a layer as two tensors, as transformers 5 has them in memory.
    """

    manifest_folder = "."

    def __init__(self, plans: Mapping[str, Plan], shard_bytes: int, fused: bool):
        self._plans = plans
        self._stored = _stored_tensors(plans, fused)
        shards: list[list[str]] = []
        size = 0
        for stored, pieces in self._stored.items():
            bytes_here = sum(plans[name].bytes for name in pieces)
            if not shards or size + bytes_here > shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append(stored)
            size += bytes_here
        self._shards = {
            _shard_name(i, len(shards)): tuple(stored) for i, stored in enumerate(shards)
        }
        self.parts = [
            Part(file, tuple(name for s in stored for name in self._stored[s]))
            for file, stored in self._shards.items()
        ]

    def problems(self) -> list[str]:
        return [
            f"{stored} would have dtypes {found}; choose one with --dtype"
            for stored, pieces in self._stored.items()
            if len(found := sorted({str(self._plans[n].dtype) for n in pieces})) > 1
        ]

    def write(self, part: Part, path: Path, read: Read) -> list[Any]:
        stored = self._shards[part.file]
        header = [(s, self._plans[self._stored[s][0]].dtype, self._shape(s)) for s in stored]
        with SafetensorsWriter(path, header) as writer:
            for name in part.names:
                writer.add(read(name))
        return list(stored)

    def _shape(self, stored: str) -> Shape:
        pieces = self._stored[stored]
        rows, *columns = self._plans[pieces[0]].shape
        if len(pieces) == 1:
            return (rows, *columns)
        matrices = 2 if stored.endswith("gate_up_proj") else 1
        return (len(pieces) // matrices, matrices * rows, *columns)

    def finish(self, folder: Path, records: Records) -> None:
        """Write the index of all files."""
        weight_map = {name: file for file, names in records.items() for name in names}
        total = sum(plan.bytes for plan in self._plans.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _stored_tensors(plans: Mapping[str, Plan], fused: bool) -> dict[str, tuple[str, ...]]:
    """Tensors in the files, each with the model's tensors it consists of."""
    stored: dict[str, list[str]] = {}
    for name in plans:
        layer, marker, rest = name.partition(".mlp.experts.")
        key = name
        if fused and marker:
            which = "down_proj" if rest.endswith("down_proj.weight") else "gate_up_proj"
            key = f"{layer}.mlp.experts.{which}"
        stored.setdefault(key, []).append(name)
    return {key: tuple(names) for key, names in stored.items()}


def _shard_name(number: int, count: int) -> str:
    if count == 1:
        return SINGLE
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


class MegatronSink:
    """A distributed checkpoint with the entries Megatron would write on one rank.

    Args:
        plans: of every Hugging Face tensor.
        all_units: of the model, in the order in which to write.
        file_bytes: about how large a file is.
    """

    manifest_folder = RELEASE

    def __init__(
        self,
        plans: Mapping[str, Plan],
        all_units: list[Unit],
        file_bytes: int = 4 * GIB,
    ):
        self._plans = plans
        self._units = all_units
        self._of_file: dict[str, list[Unit]] = {}
        size = file_bytes
        for unit in all_units:
            bytes_here = sum(plans[name].bytes for name in unit.names)
            if size + bytes_here > file_bytes:
                file = f"{RELEASE}/__0_{len(self._of_file)}.distcp"
                self._of_file[file], size = [], 0
            self._of_file[file].append(unit)
            size += bytes_here
        self.parts = [
            Part(file, tuple(name for unit in here for name in unit.names))
            for file, here in self._of_file.items()
        ]

    def problems(self) -> list[str]:
        """An entry has one dtype, in all layers and experts."""
        names_of: dict[str, dict[str, list[str]]] = {}
        for unit in self._units:
            for name in unit.names:
                dtype = str(self._plans[name].dtype).removeprefix("torch.")
                names_of.setdefault(unit.key, {}).setdefault(dtype, []).append(name)
        problems = []
        for key, by_dtype in names_of.items():
            usual = max(by_dtype, key=lambda dtype: len(by_dtype[dtype]))
            problems += [
                f"{name} has dtype {dtype} and the other tensors of {key} have {usual}; choose "
                "one with --dtype"
                for dtype, names in by_dtype.items()
                if dtype != usual
                for name in names
            ]
        return problems

    def write(self, part: Part, path: Path, read: Read) -> list[Any]:
        writer = RecordWriter(path, Path(part.file).name)
        with writer:
            for unit in self._of_file[part.file]:
                tensors = [read(name) for name in unit.names]
                for row, rows in unit.transform.chunks(tensors):
                    offsets = (*unit.place, row, *(0 for _ in unit.shape[1:]))
                    for key in filter(None, (unit.key, unit.also)):
                        leading = (1,) * len(unit.place)
                        writer.add(key, offsets, rows.reshape(*leading, *rows.shape))
        return [asdict(record) for record in writer.records]

    def finish(self, folder: Path, records: Records, common: dict[str, Any]) -> None:
        """Write what is not sharded, and the metadata of all files."""
        release = folder / RELEASE
        everything = [Record.of(r) for of_file in records.values() for r in of_file]
        objects = f"__0_{len(self.parts)}.distcp"
        with RecordWriter(release / objects, objects) as writer:
            writer.add_object(COMMON, [common])
            for key in self._extra_states():
                writer.add_object(key, [None])
        shapes = {
            key: unit.global_shape for unit in self._units for key in (unit.key, unit.also) if key
        }
        write_metadata(release, shapes, [*everything, *writer.records])
        (folder / TRACKER).write_text(RELEASE, encoding="utf-8")

    def _extra_states(self) -> list[str]:
        """Keys of the states beside weights that Megatron's linear layers ask for, all empty.

        TransformerEngine has them in its norms and in the attention too.
        """
        keys = []
        for unit in self._units:
            module, _, leaf = unit.key.rpartition(".")
            no_linear = leaf in ("layer_norm_weight", "gate_weight") or ".mlp.router" in module
            if no_linear or not module.startswith("decoder."):
                continue
            place, stacked = unit.place or (0,), unit.stacked or (1,)
            shard = f"{'.'.join(map(str, place))}_{'.'.join(map(str, stacked))}"
            keys.append(f"{module}._extra_state/shard_{shard}")
            if module.endswith(".linear_proj"):
                attention = module.removesuffix(".linear_proj")
                keys.append(f"{attention}.core_attention._extra_state/shard_{shard}")
        return list(dict.fromkeys(keys))
