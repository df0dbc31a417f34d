"""The page of all parts, made from their rows."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args

from ..checks.flags import flag_of
from . import registry
from .part import Part, Slot
from .slots import flag_fields

PAGE = Path(__file__).with_name("README.md")

TITLES: dict[Slot, str] = {
    "gate": "Gates: what makes the logits of a token",
    "logits": "Logits: changed before anything reads them",
    "selector": "Selectors: how experts are selected, and weighed, otherwise than by scores",
    "scoring": "Scoring: what experts are selected and weighed by",
    "select": "Selection: what may be selected from",
    "weigh": "Weights: what becomes of those of the selected",
    "keep": "Keeping: which of the selected experts a token goes to",
    "drop": "Dropping: what experts with too many tokens give up",
    "counts": "Counts: what losses count as the load of an expert",
    "loss": "Auxiliary losses, beside Megatron's own",
    "coefficient": "Weights of balance losses that move",
    "update": "Updates: how the expert bias moves after a global batch",
    "schedule": "Schedules: how the rate of that decays",
    "local": "Local experts: beside those with an FFN, computed where the token is",
}

FLAGS_HEAD = "| flag | default | it is |\n| --- | --- | --- |"

_TOP = """# Parts of the router

Made by `python -m grove_megatron.parts --write` from the files of this folder; not edited by hand.

A router is composed of parts, each a file with its paper, its flags, what it excludes, its
weights, and the same computation in a few slow lines, which tests compare it with. They work with
groups and, with `--grove-dispatch`, in a plain MoE, where the table does not say otherwise.
CONTRIBUTING says how to add one. In the repository `docs/parts` has a card of each: its formula,
when to use it, what it needs and excludes.
"""


def page() -> str:
    """The whole page."""
    sections = [section for slot in get_args(Slot) for section in _section(slot)]
    return "\n".join([_TOP, *sections, f"## Flags\n\n{FLAGS_HEAD}", *_flags()]) + "\n"


def _section(slot: Slot) -> Iterator[str]:
    yield f"## {TITLES[slot]}\n"
    yield "| part | asked for by | it is | source |"
    yield "| --- | --- | --- | --- |"
    for part in registry.of_slot(slot):
        needs = "; with groups only" if part.needs_groups else ""
        yield f"| {part.name} | {asked(part)} | {part.help}{needs} | {part.source} |"
    yield ""


def asked(part: Part) -> str:
    """What asks for it, as Markdown."""
    if part.switch is None and part.slot in flag_fields():
        default = " (default)" if part.name == registry.default(part.slot) else ""
        return f"`{flag_of(registry.setting(part))} {part.name}`{default}"
    if part.slot == "gate":
        # One flag names each of them.
        return f"`{part.tried}`"
    return f"`{flag_of(part.switch)}`" if part.switch else f"`{part.tried.split()[0]}`"


def _flags() -> Iterator[str]:
    for kind in registry.settings_classes():
        yield from rows_of(kind)


def rows_of(kind: type) -> Iterator[str]:
    """A row of a table for each flag of a dataclass: name, default, help."""
    texts = documented(kind)
    for field in fields(kind):
        yield f"| `{flag_of(field.name)}` | {shown_default(field)} | {texts[field.name]} |"


def shown_default(field: Field[Any]) -> str:
    """The default of a flag, as a table has it."""
    return {"None": "none", "False": "off"}.get(str(field.default), f"`{field.default}`")


def documented(kind: type) -> dict[str, str]:
    """The docstrings of a dataclass's fields, each in one line."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef), "a class"
    pairs = zip(body.body, body.body[1:], strict=False)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in pairs
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }
