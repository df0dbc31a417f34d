"""The file of a placement: for each layer its groups, in the order in which ranks hold them."""

import hashlib
import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks.problem import Problem, Refusal

FORMAT, VERSION = "grove_placement", 1

_SIZES = ("experts", "groups", "ranks")
_KEYS = ("format", "version", *_SIZES, "layers")
# As metrics name them; see Run.layers of a record.
_LAYER = re.compile(r"(mtp )?[1-9][0-9]*")


def is_layer(name: str) -> bool:
    """Is that a name which a layer can have?"""
    return _LAYER.fullmatch(name) is not None


@dataclass(frozen=True)
class Assignment:
    """Units in physical order: whole groups with their adjugates, or experts where there are none.

    Attributes:
        experts: routed experts of a layer.
        groups: of those experts, in order; 0: the units are single experts.
        ranks: expert-parallel ranks; rank r holds the r-th equal slice of units. The order inside
            a slice says nothing: a rank keeps what it holds in ascending order.
        layers: by the name a record has for it (``3``, ``mtp 1``), the unit in every physical
            slot. A layer that is not named keeps the order.
    """

    experts: int
    groups: int
    ranks: int
    layers: dict[str, tuple[int, ...]]

    @property
    def units(self) -> int:
        """How many there are in a layer."""
        return self.groups or self.experts

    def order(self, layer: str) -> tuple[int, ...]:
        """The unit in every physical slot of a layer, ascending on every rank."""
        units = self.layers.get(layer) or tuple(range(self.units))
        size = self.units // self.ranks
        slices = (sorted(units[i : i + size]) for i in range(0, self.units, size))
        return tuple(unit for one in slices for unit in one)

    def expert_order(self, layer: str) -> tuple[int, ...]:
        """The expert in every physical slot of a layer."""
        size = self.experts // self.units
        return tuple(unit * size + i for unit in self.order(layer) for i in range(size))

    @property
    def moved(self) -> dict[str, tuple[int, ...]]:
        """The orders of the layers of which a rank holds others than without a placement."""
        in_order = tuple(range(self.units))
        orders = {name: self.order(name) for name in self.layers}
        return {name: order for name, order in orders.items() if order != in_order}

    @property
    def digest(self) -> str | None:
        """Sixteen hexadecimal digits, the same where every rank holds the same.

        None: what every rank holds without a placement.
        """
        if not self.moved:
            return None
        said = json.dumps([self.experts, self.groups, self.ranks, self.moved], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]


def read(path: str | os.PathLike[str]) -> Assignment:
    """The placement in a file.

    Raises:
        ValueError: there is none, or it says nothing that could be applied; everything that is
            wrong with it at once.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = json.loads(text, object_pairs_hook=_without_doubles)
    except OSError as error:
        raise _refusal(path, [f"cannot be read: {error.strerror}; name another file"]) from error
    except (ValueError, RecursionError) as error:
        fix = "name a file that grove place has made"
        raise _refusal(path, [f"is not JSON: {_brief(str(error))}; {fix}"]) from error
    if faults := _faults(found):
        raise _refusal(path, faults)
    layers = {name: tuple(order) for name, order in found["layers"].items()}
    return Assignment(found["experts"], found["groups"], found["ranks"], layers)


def write(path: str | os.PathLike[str], assignment: Assignment) -> None:
    """Put a placement into a file, in one step; what was there is replaced.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    said: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        **{name: getattr(assignment, name) for name in _SIZES},
        "layers": {name: list(order) for name, order in assignment.layers.items()},
    }
    assert not _faults(said), _faults(said)
    # A line for each layer, so that two files can be compared.
    layers = [f"    {json.dumps(name)}: {json.dumps(o)}" for name, o in said.pop("layers").items()]
    begin = "".join(f"  {json.dumps(name)}: {json.dumps(value)},\n" for name, value in said.items())
    inside = "{\n" + ",\n".join(layers) + "\n  }" if layers else "{}"
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(f'{{\n{begin}  "layers": {inside}\n}}\n')
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def problems(
    assignment: Assignment,
    path: str | os.PathLike[str],
    *,
    experts: int,
    groups: int,
    ranks: int | None = None,
    layers: Collection[str] | None = None,
) -> list[Problem]:
    """Why a placement is not one of a model, or of a job.

    Args:
        assignment: what was read from ``path``.
        experts, groups: of the model's layers.
        ranks: the job's expert-parallel ranks; None: it need not be for as many.
        layers: names of the model's MoE layers; None: any.
    """
    found = []
    for name, ours in (("experts", experts), ("groups", groups)):
        theirs = getattr(assignment, name)
        if theirs != ours:
            found.append(
                f"is for {name} ({theirs}), the model has ({ours}); "
                "make one from a record of this model"
            )
    if ranks is not None and assignment.ranks != ranks:
        found.append(
            f"is for expert-parallel ranks ({assignment.ranks}), the job has ({ranks}), whose "
            "slices would be others than were chosen; make one with grove place "
            f"--expert-parallel {ranks}"
        )
    missing = [name for name in assignment.layers if layers is not None and name not in layers]
    if missing:
        found.append(
            f"has layers ({_some(missing)}) that are no MoE layers of the model "
            f"({_some(layers or ())}); make one from a record of this model"
        )
    return [Problem("placement", str(path), text) for text in found]


def _faults(found: Any) -> list[str]:
    """What is wrong with a file by itself."""
    make = "make it anew with grove place"
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return [f"is no placement, whose format would be ({FORMAT}); name a file of grove place"]
    if type(found.get("version")) is not int or found["version"] != VERSION:
        version = _brief(found.get("version"))
        return [f"has version ({version}), this package reads ({VERSION}); {make} of this package"]
    lacks = [name for name in _KEYS if name not in found]
    unknown = [name for name in found if name not in _KEYS]
    faults = [f"lacks ({_some(lacks)}); {make}"] if lacks else []
    faults += [f"has entries ({_some(unknown)}) that say nothing; remove them"] if unknown else []
    sizes = {name: found[name] for name in _SIZES if name in found}
    for name, size in sizes.items():
        least = 0 if name == "groups" else 1
        if type(size) is not int or size < least:
            faults.append(f"has {name} ({_brief(size)}), not a number from {least} up; {make}")
    if not isinstance(found.get("layers", {}), dict):
        faults.append(f"has layers ({_brief(found['layers'])}), not a list for each; {make}")
    return faults or _faults_of_sizes(**sizes) or _faults_of_layers(found)


def _faults_of_sizes(experts: int, groups: int, ranks: int) -> list[str]:
    make = "make it anew with grove place"
    faults = []
    if groups and experts % groups:
        faults.append(f"has experts ({experts}), not a multiple of its groups ({groups}); {make}")
    unit = "groups" if groups else "experts"
    if (groups or experts) % ranks:
        said = f"has {unit} ({groups or experts}), not a multiple of its ranks ({ranks})"
        faults.append(f"{said}, each of which holds as many; {make}")
    return faults


def _faults_of_layers(found: dict[str, Any]) -> list[str]:
    make = "make it anew with grove place"
    unit, units = ("groups", found["groups"]) if found["groups"] else ("experts", found["experts"])
    faults = []
    for name, order in found["layers"].items():
        if not is_layer(name):
            faults.append(
                f"names a layer ({_brief(name)}), where names are as (3) and (mtp 1); {make}"
            )
        elif not isinstance(order, list) or any(type(one) is not int for one in order):
            faults.append(f"has for layer ({name}) no list of numbers; {make}")
        elif len(order) != units:
            faults.append(f"has in layer ({name}) ({len(order)}) {unit}, not ({units}); {make}")
        elif sorted(order) != [*range(units)]:
            left_out = [str(one) for one in sorted({*range(units)} - {*order})]
            faults.append(
                f"has in layer ({name}) not every one of {unit} 0 to {units - 1} once: "
                f"({_some(left_out)}) are left out; {make}"
            )
    return faults


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of two entries with one name Python would take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{_brief(double)} stands twice in it")
    return found


def _refusal(path: str | os.PathLike[str], texts: list[str]) -> Refusal:
    return Refusal([Problem("placement", str(path), text) for text in texts])


def _some(names: Collection[str]) -> str:
    shown = [_brief(name) for name in [*names][:5]]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _brief(value: object) -> str:
    """Of any value of JSON the beginning, without what a terminal would act upon."""
    return json.dumps(value).strip('"')[:60]
