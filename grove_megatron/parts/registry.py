"""Every part there is: what the files of this folder declare as ``PARTS``."""

import pkgutil
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from importlib import import_module
from typing import Any

from ..checks.problem import Problem
from ..checks.rules import Check
from ..model.weights import Weight
from . import __name__ as package
from . import __path__ as folders
from .part import Carried, Part, Slot
from .slots import Choices, flag_fields


@cache
def parts() -> tuple[Part, ...]:
    """All of them, by slot and order."""
    names = sorted(info.name for info in pkgutil.walk_packages(folders, f"{package}."))
    modules = [import_module(name) for name in names if name != f"{package}.registry"]
    found = [part for module in modules for part in getattr(module, "PARTS", ())]
    return tuple(sorted(found, key=lambda part: part.order))


def of_slot(slot: Slot) -> tuple[Part, ...]:
    """The parts of a slot, in the order they act in."""
    return tuple(part for part in parts() if part.slot == slot)


def active(settings: Any, slot: Slot | None = None) -> tuple[Part, ...]:
    """The parts that a configuration or a command line asks for, of a slot or of all."""
    return tuple(p for p in (of_slot(slot) if slot else parts()) if p.is_on(settings))


def one(settings: Any, slot: Slot) -> Part | None:
    """The part that fills a slot, or None."""
    found = active(settings, slot)
    assert len(found) <= 1, f"one part fills {slot}"
    return found[0] if found else None


@cache
def settings_classes() -> tuple[type, ...]:
    """Dataclasses of all flags of parts."""
    own = dict.fromkeys(part.settings for part in parts() if part.settings is not None)
    return (Choices, *own)


def settings_names() -> list[str]:
    """Of all flags of parts."""
    return [f.name for kind in settings_classes() for f in fields(kind)]


def weights(settings: Any) -> tuple[Weight, ...]:
    """What the parts of every router have, as its checkpoint names them."""
    return tuple(
        Weight(f"mlp.router.{part.slot}_{part.name}.{name}", ("".join(dims),), buffer=buffer)
        for part in parts()
        if (part.weights or part.buffers) and part.is_on(settings)
        for buffer, named in ((False, part.weights), (True, part.buffers))
        for name, dims in named.items()
    )


def needs(settings: Any) -> frozenset[Carried]:
    """What the parts of a router read that travels beside the hidden states."""
    return frozenset[Carried]().union(*(part.needs for part in active(settings)))


def local_experts(settings: Any) -> int:
    """Columns of the router beyond the routed experts."""
    return sum(part.columns(settings) for part in active(settings, "local"))


def default(slot: Slot) -> str | None:
    """The part of a slot that is there unless another is asked for; None: it depends."""
    found: str | None = getattr(Choices, flag_fields()[slot])
    return found


def choices(slot: Slot) -> tuple[str, ...]:
    """Names of the parts of a slot."""
    return tuple(part.name for part in of_slot(slot))


def setting(part: Part) -> str:
    """What asks for a part."""
    return part.switch or flag_fields()[part.slot]


def of_groups() -> frozenset[str]:
    """Settings that mean nothing without groups."""
    of_parts = [part for part in parts() if part.needs_groups]
    own = {f.name for part in of_parts if part.settings is not None for f in fields(part.settings)}
    # Of a slot that one part fills: without groups that part is not chosen.
    return frozenset(own | {setting(part) for part in of_parts})


def free() -> frozenset[str]:
    """Settings that may differ between the run that wrote a checkpoint and one that reads it."""
    of_no_weights: tuple[Slot, ...] = ("counts", "update", "schedule")
    names = {flag_fields()[slot] for slot in of_no_weights}
    return frozenset(names.union(*(part.free for part in parts())))


def problems(settings: Any) -> list[Problem]:
    """What is wrong with the settings of parts.

    Args:
        settings: a configuration or an argument namespace, of a layer of this package.
    """
    return [*_unknown(settings), *_idle(settings), *_of_those_that_are_on(settings)]


def _unknown(settings: Any) -> Iterator[Problem]:
    for slot, name in flag_fields().items():
        if getattr(settings, name) is not None:
            found = choices(slot)
            yield from Check(settings).one_of(name, found, f"use {default(slot) or found[0]}")


def _idle(settings: Any) -> Iterator[Problem]:
    """Settings of parts that are off."""
    for kind in settings_classes():
        users = [part for part in parts() if part.settings is kind or kind in part.reads]
        switches = [part.switch for part in users if part.switch]
        if any(part.is_on(settings) for part in users):
            continue
        selectors = [part.name for part in users if part.slot == "selector"]
        if selectors:
            only = f"which does not read it; use {' or '.join(selectors)}, or remove it"
            broken = {
                f"{{{f.name}}} is set beside {{grove_router_selector}}, {only}": (
                    getattr(settings, f.name) != f.default
                )
                for f in fields(kind)
            }
            yield from Check(settings).those(broken)
        if not switches:
            continue
        without = " or ".join(f"{{{name}}}" for name in switches)
        broken = {
            f"{{{f.name}}} is set without {without}, which reads it; give that, or remove it": (
                f.name not in switches and getattr(settings, f.name) != f.default
            )
            for f in fields(kind)
        }
        yield from Check(settings).those(broken)
    if not settings.moe_router_enable_expert_bias:
        yield from _of_no_bias(settings)


def _of_no_bias(settings: Any) -> Iterator[Problem]:
    of_bias = [part for part in parts() if part.slot in ("update", "schedule")]
    kinds = dict.fromkeys(part.settings for part in of_bias if part.settings is not None)
    names = [flag_fields()["update"], flag_fields()["schedule"]]
    defaults = {name: getattr(Choices, name) for name in names}
    defaults |= {f.name: f.default for kind in kinds for f in fields(kind)}
    broken = {
        f"{{{name}}} is set without {{moe_router_enable_expert_bias}}, so there is no bias to "
        "move; add that, or remove it": getattr(settings, name) != default
        for name, default in defaults.items()
    }
    yield from Check(settings).those(broken)


def _of_those_that_are_on(settings: Any) -> Iterator[Problem]:
    said: list[Problem] = []
    for part in active(settings):
        # Parts of one file may share a rule.
        said += [problem for problem in part.rules(settings) if problem not in said]
    return iter(said)
