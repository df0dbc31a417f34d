"""``grove explain``: what to do about a message."""

import sys
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .entries import Entry

_WIDTH = 100
INSTRUCTIONS = frozenset(
    """add allow build call change check choose convert copy correct dequantise end enter export
    give git install keep leave let load look lower make mark measure merge move mpirun name
    number pass pip put raise remove rename replace reset restore save say see select set start
    take torchrun train ulimit uninstall unpack unset use wait write""".split()
)
"""What an instruction begins with: verbs, and commands."""


def explain(
    message: Annotated[
        list[str] | None,
        typer.Argument(
            help="What was said, in quotes: all of it, its first words, or the end of a log. "
            "Without it, it is read from stdin."
        ),
    ] = None,
) -> None:
    """Say where a message comes from and what to do about it.

    Of this package's own, and of those of Megatron and torch that its users meet. Prints the entry,
    or the most similar ones; exits 1 if there is none.
    """
    from .entries import entries
    from .match import lookup, nearest

    text = " ".join(message) if message else sys.stdin.read()
    known = entries()
    found: list[Entry] = lookup(text, known)
    if not found and (found := nearest(text, known)):
        print("No message is that; the most similar:\n")
    if not found:
        print(
            "grove_megatron: no message is like that, of this package or those it knows of "
            "Megatron and torch",
            file=sys.stderr,
        )
        raise typer.Exit(1)
    print("\n\n".join(_shown(entry) for entry in found))


def _shown(entry: "Entry") -> str:
    lines = [entry.text, f"  {_where(entry)}"]
    note = entry.note or _fix(entry.text)
    lines += textwrap.wrap(note, _WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def _where(entry: "Entry") -> str:
    if not entry.is_ours:
        return f"said by {entry.source.split('/')[0]} ({entry.source})"
    from .areas import AREAS, area_of, place_of

    area = area_of(entry.source)
    flag = f"; about {entry.flag}" if entry.flag else ""
    page = f"docs/troubleshooting/{area}.md"
    return f"{AREAS[area]} ({place_of(entry.source)}.py{flag}); {page}"


def _fix(text: str) -> str:
    """What the message itself says to do: behind its last semicolon, if that is an instruction."""
    _, _, fix = text.rpartition("; ")
    does = fix.split(" ")[0].rstrip(",:") in INSTRUCTIONS
    return f"To do: {fix}." if does and fix != text else ""
