"""The page of all ``--grove-*`` flags, made from the fields that they are of."""

import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin

from ..checks.flags import flag_of
from ..config import NOT_OF_THE_WEIGHTS, OF_GROUPS, GroveTransformerConfig, JobSettings
from ..parts import registry
from ..parts.page import TITLES, documented, shown_default
from ..parts.part import Part, Slot
from ..parts.slots import Choices

MADE = "Made by `python -m grove_megatron.reference --write`; not edited by hand."
_TOP = f"""# Every flag

{MADE}

All flags of this package, beside Megatron's own. *Weights*: the flag is part of what a checkpoint's
weights are; a run that loads one has to say the same, or `--use-checkpoint-args`. *Layer*: kept in
a checkpoint too, and another run of it may say otherwise. *Job*: of the run alone. Flags *with
groups* mean nothing without `--grove-num-groups`; the others hold for a plain MoE with
`--grove-dispatch` as well."""
_HEAD = """| flag | default | type | meaning | kept |
| --- | --- | --- | --- | --- |"""
_HEAD_OF_PARTS = """| flag | default | type | meaning | of | kept |
| --- | --- | --- | --- | --- | --- |"""
_ROUTER = (
    "Which parts a router has is said by a few choices; a part's own flags turn it on, or tune it."
)


def page() -> str:
    """The whole page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield _TOP
    own = [f for f in fields(GroveTransformerConfig) if f.name in _own_names()]
    yield f"\n## The layer\n\n{_HEAD}"
    texts = documented(GroveTransformerConfig)
    yield from (_row(f, texts[f.name]) for f in own)
    yield f"\n## The job\n\n{_HEAD}"
    texts = documented(JobSettings)
    yield from (_row(f, texts[f.name], job=True) for f in fields(JobSettings))
    yield "\n## The router: one part of each kind\n"
    yield from textwrap.wrap(_ROUTER, 100)
    yield f"\n{_HEAD_OF_PARTS}"
    texts = documented(Choices)
    for f in fields(Choices):
        slot: Slot = f.metadata["slot"]
        links = ", ".join(_link(part) for part in registry.of_slot(slot))
        yield _row(f, texts[f.name], of=f"{slot}: {links}", kind=" or ".join(_named(slot)))
    for slot in get_args(Slot):
        if kinds := _kinds(slot):
            yield f"\n## {TITLES[slot]}\n\n{_HEAD_OF_PARTS}"
            for kind in kinds:
                texts, links = documented(kind), ", ".join(_link(part) for part in _users(kind))
                yield from (_row(f, texts[f.name], of=links) for f in fields(kind))


def _own_names() -> frozenset[str]:
    return frozenset(GroveTransformerConfig.__annotations__)


def _kinds(slot: Slot) -> list[type]:
    """Dataclasses of flags whose first part is of a slot, each once."""
    return [
        k for k in registry.settings_classes() if k is not Choices and _users(k)[0].slot == slot
    ]


def _users(kind: type) -> list[Part]:
    """The parts that read a dataclass of flags."""
    return [part for part in registry.parts() if part.settings is kind or kind in part.reads]


def _named(slot: Slot) -> list[str]:
    return [f"`{name}`" for name in registry.choices(slot)]


def _link(part: Part) -> str:
    return f"[{part.name}](../parts/{part.slot}-{part.name}.md)"


def _row(
    field: Field[Any], text: str, *, job: bool = False, of: str | None = None, kind: str = ""
) -> str:
    assert field.default is not MISSING, "every flag may be left out"
    kept = "job" if job else "layer" if field.name in NOT_OF_THE_WEIGHTS else "weights"
    kept += ", with groups" if field.name in OF_GROUPS else ""
    kind = kind or _type(field.type)
    cells = [f"`{flag_of(field.name)}`", shown_default(field), kind, text]
    cells += [*([of] if of else []), kept]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _type(annotation: Any) -> str:
    """What stands behind the flag."""
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is list:
        return "words"
    inner = [one for one in get_args(annotation) if one is not type(None)]
    if inner:
        return _type(inner[0])
    return {bool: "switch", int: "whole number", float: "number", str: "text"}[annotation]
