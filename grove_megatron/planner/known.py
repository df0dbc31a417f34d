"""The table of flags and parts that a plan reads in place of Megatron and torch.

``python -m grove_megatron.planner --write`` makes it of the parser and the registry as they are.
"""

import json
from argparse import Action, ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Iterator
from enum import Enum
from typing import Any

from ..arguments import add_grove_arguments
from ..compat import installed_version
from ..config import grove_defaults
from ..parts import registry
from ..parts.part import Part
from .flags import TABLE, TYPES

# What argparse calls its actions.
_ACTIONS = {
    "_StoreAction": "store",
    "_StoreTrueAction": "store_true",
    "_StoreFalseAction": "store_false",
    # torchrun's, whose defaults the environment may change.
    "env": "store",
    "check_env": "store_true",
}


def parser() -> ArgumentParser:
    """Megatron's, with the Grove flags."""
    from megatron.training.arguments import add_megatron_arguments

    return add_grove_arguments(add_megatron_arguments(ArgumentParser(allow_abbrev=False)))


def torchrun() -> ArgumentParser:
    """The launcher's."""
    from torch.distributed.run import get_args_parser

    made: ArgumentParser = get_args_parser()
    return made


def text() -> str:
    """The table as it is now, a flag or a part a line."""
    flags = [_flag(action) for action in parser()._actions if action.dest != "help"]
    rows: dict[str, list[Any]] = {
        "megatron-core": [installed_version("megatron-core")],
        "flags": flags,
        "torchrun": [_flag(action) for action in torchrun()._actions if action.dest != "help"],
        "parts": [*_parts()],
        "defaults": [grove_defaults()],
    }
    lists = (
        f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, found)) + "\n]"
        for name, found in rows.items()
    )
    return "{\n" + ",\n".join(lists) + "\n}\n"


def write() -> None:
    """Make the file anew."""
    TABLE.write_text(text(), encoding="utf-8")


def _flag(action: Action) -> dict[str, Any]:
    boolean = isinstance(action, BooleanOptionalAction)
    kind = "optional" if boolean else _ACTIONS[type(action).__name__]
    row: dict[str, Any] = {"flags": [*action.option_strings], "dest": action.dest, "action": kind}
    if boolean:
        row["flags"] = [flag for flag in row["flags"] if not flag.startswith("--no-")]
    if kind == "store":
        row |= {"nargs": action.nargs, "type": _type(action), "const": action.const}
        row["choices"] = action.choices and [*map(_plain, action.choices)]
    row["default"] = _plain(action.default)
    if action.required and action.option_strings:
        row["required"] = True
    # A switch without a default would be False.
    switch = {"default": row.pop("default")} if kind != "store" else {}
    return {name: value for name, value in row.items() if value is not None} | switch


def _type(action: Action) -> str | None:
    if action.type is None:
        return None
    choices = [*(action.choices or ())]
    if choices and isinstance(choices[0], Enum):
        return "name"
    name: str = getattr(action.type, "__name__", "")
    assert name in TYPES, f"{action.option_strings} has a type ({name}) that planner/flags.py lacks"
    return name


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value


def _parts() -> Iterator[dict[str, Any]]:
    """The parts with weights or columns of their own, and what turns them on."""
    for part in registry.parts():
        if not (part.weights or part.buffers or _columns(part)):
            continue
        name = registry.setting(part)
        row = {"slot": part.slot, "name": part.name, "setting": name, "value": _value(part, name)}
        row |= {"columns": _columns(part)}
        yield row | {"weights": dict(part.weights), "buffers": dict(part.buffers)}


def _columns(part: Part) -> bool:
    """Has it columns of the router, as many as its setting says?"""
    if part.slot != "local":
        return False
    name = registry.setting(part)
    counts = [part.columns(_settings(**{name: n})) for n in (1, 3)]
    assert counts == [1, 3], f"{part.name} has as many columns as its setting says"
    return True


def _value(part: Part, name: str) -> Any:
    """Of its setting; True for every one that is not false."""
    assert not part.is_on(_settings()), f"{part.name} is on by default"
    if isinstance(_settings().__dict__[name], int):
        assert part.is_on(_settings(**{name: 1})), f"{part.name} is not on with {name}"
        return True
    words = [word for word in part.tried.split() if not word.startswith("--")]
    (value,) = [one for one in (*words, part.name) if part.is_on(_settings(**{name: one}))][:1]
    return value


def _settings(**given: Any) -> Namespace:
    return Namespace(**grove_defaults() | given)
