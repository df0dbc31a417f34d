"""Finds the entry of a message that somebody has seen."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

from .entries import WORD, Entry

# What stands before a message: this package's name, a number in a list, ranks, a logger, a type.
_BEFORE = re.compile(
    r"^\s*(?:\[rank\d+\]:\s*|grove_megatron:\s*|note:\s*|\d+\.\s+|rank \d+(?: \([^)]*\))?(?:, |: )"
    r"|failed: |(?:[A-Za-z_]+\.)*[A-Z][A-Za-z]*(?:Error|Refusal|Exception):\s*)+"
)
# Of a message, and of words out of its middle.
_FEWEST_WORDS = 3
_NEAR = 0.5


@dataclass(frozen=True, order=True)
class _Fit:
    """How well a message is one of an entry: the better, the larger.

    Args:
        kind: 2: all of it; 1: its beginning; 0: words out of its middle.
        certain: letters of the entry that are in it.
        fewer_holes: the entry's holes, as a negative number.
    """

    kind: int
    certain: int
    fewer_holes: int


def lookup(text: str, entries: Iterable[Entry]) -> list[Entry]:
    """The entries of what is pasted: a message, its first words, or lines that have several.

    Args:
        text: what somebody saw, line ends and all.
        entries: to look in.
    """
    known = [*entries]
    lines = [*_lines(text)]
    hits = [best for line in lines if (best := _best(line, known))]
    whole = _best(_BEFORE.sub("", " ".join(text.split())), known) if len(lines) > 1 else None
    # A message that a terminal has wrapped is none of its lines.
    if whole and (not hits or whole[0] > max(fit for fit, _ in hits)):
        hits = [whole]
    return [*dict.fromkeys(entry for _, entry in hits)]


def nearest(text: str, entries: Iterable[Entry], most: int = 3) -> list[Entry]:
    """The most similar, best first; none that shares little."""
    wanted = _BEFORE.sub("", " ".join(text.split()))
    words = set(WORD.findall(wanted.lower()))

    def shared(entry: Entry) -> float:
        theirs = set(WORD.findall(entry.text.lower()))
        return len(words & theirs) / max(len(words | theirs), 1)

    likely = sorted(entries, key=shared, reverse=True)[:60]
    rated = [(_ratio(wanted, entry.text), entry) for entry in likely if shared(entry) > 0]
    rated.sort(key=lambda pair: pair[0], reverse=True)
    return [entry for ratio, entry in rated[:most] if ratio >= _NEAR]


def _ratio(one: str, other: str) -> float:
    return SequenceMatcher(None, one.lower(), other.lower(), autojunk=False).ratio()


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        shown = " ".join(_BEFORE.sub("", line).split())
        if shown:
            yield shown


def _best(line: str, entries: Iterable[Entry]) -> tuple[_Fit, Entry] | None:
    whole = [(fit, entry) for entry in entries if (fit := _whole(entry, line)) is not None]
    if not whole:
        words = {*WORD.findall(line)}
        # The last word may be cut off.
        likely = [entry for entry in entries if len(words & entry.words) >= _FEWEST_WORDS - 1]
        whole = [(fit, entry) for entry in likely if (fit := _part(entry, line)) is not None]
    return max(whole, key=lambda pair: pair[0], default=None)


def _whole(entry: Entry, line: str) -> _Fit | None:
    """Are all pieces in the line, in order?"""
    if entry.longest not in line:
        return None
    place = 0
    for number, piece in enumerate(entry.pieces):
        at = line.find(piece, place)
        if at < 0 or (number == 0 and piece and _inside_a_word(line, at)):
            return None
        place = at + len(piece)
    return _Fit(2, sum(map(len, entry.pieces)), -len(entry.pieces))


def _part(entry: Entry, line: str) -> _Fit | None:
    """Does the line end before the last piece, or begin after the first of them?"""
    for first in range(len(entry.pieces)):
        if certain := _begins(entry.pieces, first, line):
            return _Fit(0 if first else 1, certain, 0)
    if _tells(line) and any(line in piece for piece in entry.pieces):
        return _Fit(0, len(line), 0)
    return None


def _begins(pieces: list[str], first: int, line: str) -> int:
    """How many letters of the pieces from the first on a line has; 0: too few, or others."""
    certain, place, seen = 0, 0, ""
    for number, piece in enumerate(pieces[first:], first):
        at = line.find(piece, place)
        if at < 0 and number == first and (tail := _ended(piece, line)):
            certain, place, seen = tail, tail, piece[-tail:]
            continue
        end = _begun(piece, line[place:]) if at < 0 else 0
        # What is before a piece stands in a hole, or before the whole message.
        between = line[place : len(line) - end if at < 0 else at]
        if (number > 0 or at < 0) and not _may_be_a_value(between):
            return 0
        if at < 0:
            certain, seen = certain + end, seen + piece[:end]
            break
        if number == 0 and piece and _inside_a_word(line, at):
            return 0
        certain, place, seen = certain + len(piece), at + len(piece), f"{seen} {piece}"
    return certain if _tells(seen, _FEWEST_WORDS if first else 2) else 0


def _may_be_a_value(text: str) -> bool:
    return ") " not in text and "; " not in text


def _inside_a_word(line: str, at: int) -> bool:
    return at > 0 and line[at - 1].isalnum()


def _tells(text: str, fewest: int = _FEWEST_WORDS) -> bool:
    """Is it enough to tell a message from others?"""
    return len(WORD.findall(text)) >= fewest


def _begun(piece: str, rest: str) -> int:
    """How much of the piece the rest of a line ends with."""
    last = piece.rfind(rest[-1:])
    while rest and last >= 0:
        if rest.endswith(piece[: last + 1]):
            return last + 1
        last = piece.rfind(rest[-1], 0, last)
    return 0


def _ended(piece: str, line: str) -> int:
    """How much of the piece's end a line begins with, in whole words; 0: none."""
    starts = (n for n in range(len(piece) - 1, 0, -1) if piece[-n - 1] == " ")
    return next((n for n in starts if line.startswith(piece[-n:])), 0)
