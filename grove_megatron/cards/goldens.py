"""The folders of ``grove verify --layer`` whose layers have a part."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from ..parts.part import Part
from ..presets.goldens import goldens
from ..verify_layer.golden import DEFAULT as DEFAULT
from ..verify_layer.golden import Golden
from ..verify_layer.system import System
from . import small

FOLDER = "tests/data/goldens"


def of_part(part: Part) -> Iterator[tuple[str, str]]:
    """Name and variant of each."""
    for name, variant, system in _systems():
        if _has(part, system):
            yield name, variant


@cache
def _systems() -> tuple[tuple[str, str, System], ...]:
    layers = [one for one in goldens() if one.kind == "layer"]
    found = [
        (one.folder, one.variant, Golden.read(small.CHECKOUT / one.path, one.variant).system)
        for one in layers
    ]
    return tuple(sorted(found, key=lambda one: (one[0], one[1] != DEFAULT, one[1])))


def _has(part: Part, system: System) -> bool:
    if part.slot in ("update", "schedule"):
        # One pass moves no bias.
        return False
    if part.slot == "counts" and not any(loss.fields for loss in system.losses.values()):
        return False
    own = [loss.own for loss in system.losses.values() if loss.own is not None]
    if part.slot == "loss" and any(_is_of(part, loss) for loss in own):
        return True
    fields = {name: value for loss in system.losses.values() for name, value in loss.fields.items()}
    kind = "--grove-dispatch --grove-num-groups 0 --moe-router-load-balancing-type none"
    args = small.parsed(f"{kind} {' '.join(system.flags)}")
    vars(args).update(system.fields | fields)
    return part.is_on(args)


def _is_of(part: Part, loss: Any) -> bool:
    """A step of the part's file, or a subclass of one."""
    return any(kind.__module__ == part.build.__module__ for kind in type(loss).__mro__)
