"""What a document says a command prints, against what it prints.

Shown lines stand in what was printed in their order; ``...`` stands for anything that was left out.
Numbers differ from machine to machine and are not compared, but of an ``exact output``.
"""

import re
from collections.abc import Iterator
from itertools import chain

from .fences import Fence, fences

MARKS = ("output", "exact output")
_NUMBER = re.compile(r"[-+]?\d[\d.,]*\d(?:[Ee][+-]\d+)?|\d(?:[Ee][+-]\d+)?")
_ELIDED = re.compile(r"(\.\.\.)")


class Differs(AssertionError):
    """A line that is shown and was not printed."""


def shown(document: str, command: str) -> Fence:
    """The block of a document that shows what a command prints."""
    found = [
        fence
        for fence in fences("text")
        if fence.document == document and fence.mark in MARKS and fence.said == command
    ]
    assert len(found) == 1, f"{document} shows {len(found)} outputs of {command}, not 1"
    return found[0]


def check(fence: Fence, printed: str) -> None:
    """Fail unless the block shows what was printed."""
    renewed(fence, printed)


def renewed(fence: Fence, printed: str) -> str:
    """The text of the block with the numbers that were printed.

    Raises:
        Differs: a line that was not printed, or not after those before it.
    """
    lines = iter(printed.splitlines())
    return "".join(
        f"{_renewed(line, lines, fence)}\n" if not _is_about(line) else f"{line}\n"
        for line in fence.text.splitlines()
    )


def _is_about(line: str) -> bool:
    """Does a line say what was called, or that lines are left out?"""
    return line.startswith("$ ") or line.strip() in ("", "...")


def _renewed(line: str, lines: Iterator[str], fence: Fence) -> str:
    exact = fence.mark == "exact output"
    wanted = re.compile("".join(_patterns(line, exact)))
    for candidate in lines:
        if found := wanted.fullmatch(candidate.rstrip()):
            if exact:
                return line
            # The words of the line between its new numbers.
            words = _NUMBER.split(line)
            return "".join(chain(*zip(words, found.groups(), strict=False))) + words[-1]
    raise Differs(f"{fence.name} shows a line that {fence.said} does not print there:\n{line}")


def _patterns(line: str, exact: bool) -> Iterator[str]:
    """A regular expression for what a line stands for, each number in a group of its own."""
    for piece in _ELIDED.split(line.rstrip()):
        if piece == "...":
            yield ".*?"
            continue
        at = 0
        for number in () if exact else _NUMBER.finditer(piece):
            yield _text(piece[at : number.start()])
            yield f"({_NUMBER.pattern})"
            at = number.end()
        yield _text(piece[at:])


def _text(piece: str) -> str:
    """Of words: blanks and rules of a table are as wide as the numbers beside them."""
    return re.sub(r"(\\ )+", r"\\s*", re.sub("─+", "─+", re.escape(piece)))
