"""The weights of a Megatron distributed checkpoint under Hugging Face names."""

import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from ..model.architecture import Architecture
from ..model.table import EMBEDDING, EXPERT_BIAS, OUTPUT
from .layout import COMPLETE, TRACKER, checkpoint_named, read_tracker
from .safetensors_io import NAME_OF
from .torch_dist import TorchDistReader
from .transforms import Shape
from .units import Unit, units
from .weights import Problem, TensorInfo, identity_of

_LAYER_BY_LAYER = re.compile(r"decoder\.layers\.\d+\.")
# State of training that is not of the weights.
_TRAINING = re.compile(
    r"(optimizer|chained_\d+\.optimizer|rng_state|rerun_state_machine_state)\b.*"
)


def iteration_folder(load: Path, step: int | None = None) -> Path:
    """The directory of one saved iteration.

    Args:
        load: what ``--load`` names, or such a directory itself.
        step: the iteration; by default the one the tracker file names.

    Raises:
        ValueError: there is none.
    """
    if step is None and (load / COMPLETE).is_file():
        return load
    latest = read_tracker(load) if step is None else str(step)
    if latest is None:
        raise ValueError(
            f"--load ({load}) has no readable {TRACKER}; name an iteration with --ckpt-step"
        )
    name = checkpoint_named(latest)
    if name is None:
        raise ValueError(f"{load / TRACKER} ({latest!r}) names no iteration; correct it")
    folder = load / name
    if not folder.is_dir():
        raise ValueError(
            f"--load ({load}) has no {folder.name}; name an iteration that it has with --ckpt-step"
        )
    return folder


def is_of_training(key: str) -> bool:
    """Is an entry of a checkpoint no weight: of the optimizer, or random state?"""
    return _TRAINING.fullmatch(key) is not None


class MegatronWeights:
    """A checkpoint's tensors, whichever experts and parallel layout saved it.

    Args:
        reader: of the checkpoint directory.
        architecture: what the model is; its ``vocab_size`` cuts off the padding of the embedding.
    """

    def __init__(self, reader: TorchDistReader, architecture: Architecture):
        self._reader = reader
        has_bias = any(key.endswith(EXPERT_BIAS.name) for key in reader.tensors)
        self.architecture = replace(architecture, expert_bias=has_bias)
        stacked = not any(_LAYER_BY_LAYER.match(key) for key in reader.tensors)
        self._unit_of = {
            name: (unit, which)
            for unit in units(self.architecture, stacked)
            for which, name in enumerate(unit.names)
        }
        # One unit is several Hugging Face tensors: q, k and v are read together.
        self._read_unit = lru_cache(maxsize=4)(self._read_unit_anew)

    def _key(self, unit: Unit) -> str | None:
        """The key under which the checkpoint has a unit."""
        keys = (key for key in (unit.key, unit.also) if key in self._reader.tensors)
        return next(keys, None)

    def problems(self) -> list[Problem]:
        """Wrong-shape and incomplete entries."""
        problems = []
        names_of: dict[str, list[str]] = {}
        wrong: dict[str, str] = {}
        for unit in dict.fromkeys(unit for unit, _ in self._unit_of.values()):
            key = self._key(unit)
            if key is None:
                continue
            names_of.setdefault(key, []).extend(unit.names)
            found = self._reader.shape(key)
            if not _fits(key, found, unit.global_shape):
                wrong[key] = (
                    f"{key} in {self._reader.folder} has shape {list(found)}, not "
                    f"{list(unit.global_shape)} as the checkpoint's arguments and the config say"
                )
                continue
            problems += [
                Problem(line, unit.names) for line in self._reader.problems(key, unit.place)
            ]
        return [Problem(line, tuple(names_of[key])) for key, line in wrong.items()] + problems

    def infos(self) -> Mapping[str, TensorInfo]:
        """What is there of the model by Hugging Face name, and what is not of it by its key."""
        folder = str(self._reader.folder)
        found = {
            name: TensorInfo(unit.shapes[which], self._dtype(key), folder)
            for name, (unit, which) in self._unit_of.items()
            if (key := self._key(unit)) is not None
        }
        known = {key for unit, _ in self._unit_of.values() for key in (unit.key, unit.also)}
        unknown = {
            key: TensorInfo(self._reader.shape(key), self._dtype(key), folder)
            for key in self._reader.tensors
            if key not in known and not is_of_training(key)
        }
        return found | unknown

    def _dtype(self, key: str) -> str:
        dtype = self._reader.dtype(key)
        return NAME_OF.get(dtype, str(dtype))

    def read(self, name: str) -> Tensor:
        unit, which = self._unit_of[name]
        rows = unit.transform.first_rows(unit.shapes)
        if rows is None:
            return self._read_unit(unit)[which]
        key = self._key(unit)
        assert key is not None, "checked before"
        return self._reader.region(key, unit.place, unit.shapes[which], rows[which])

    def _read_unit_anew(self, unit: Unit) -> list[Tensor]:
        key = self._key(unit)
        assert key is not None, "checked before"
        whole = self._reader.region(key, unit.place, unit.shape)
        return unit.transform.split(whole, unit.shapes)

    def identity(self) -> dict[str, object]:
        folder = self._reader.folder
        names = [".metadata", *self._reader.files()]
        # Files that have nothing of the model may be absent.
        return identity_of(folder, [folder / n for n in names if (folder / n).is_file()])


def _fits(key: str, found: Shape, wanted: Shape) -> bool:
    if key in (EMBEDDING.name, OUTPUT.name):
        # Megatron pads the vocabulary to a multiple of the tensor-parallel size.
        return found[0] >= wanted[0] and found[1:] == wanted[1:]
    return found == wanted


def checkpoint_args(reader: TorchDistReader) -> Namespace:
    """The arguments of the job that saved the checkpoint.

    Raises:
        ValueError: it has none.
    """
    args = reader.common().get("args")
    if not isinstance(args, Namespace):
        raise ValueError(f"{reader.folder} has no arguments of the job that saved it")
    return args
