"""Finds the entry of a message that somebody has seen."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

from .entries import WORD, Entry

# What stands before a message: this package's name, a number in a list, ranks, a logger, a type.
_BEFORE = re.compile(
    r"^\s*(?:\[rank\d+\]:\s*|grove_megatron:\s*|note:\s*|\d+\.\s+|rank \d+(?: \([^)]*\))?(?:, |: )"
    r"|failed: |(?:[A-Za-z_]+\.)*[A-Z][A-Za-z]*(?:Error|Refusal|Exception):\s*)+"
)
_DIGITS = re.compile(r"\d+")
# Of a message, and of words out of its middle.
_FEWEST_WORDS = 3
# Of a beginning behind which the rest is not what is expected: a log has cut it at a line end.
_WORDS_OF_A_BEGINNING = 5
# A template with fewer words is nearly all holes, and has to be all of a line.
_WORDS_OF_A_TEMPLATE = 4
_NEAR = 0.5
# Of a log only its last lines are compared with parts of messages, and only a short text is one
# message that a terminal has wrapped.
_MOST_PARTS = 300
_MOST_WRAPPED = 60
_LONGEST_LINE = 4000


@dataclass(frozen=True, order=True)
class _Fit:
    """How well a message is one of an entry: the better, the larger.

    Args:
        begins: False: words out of its middle.
        certain: letters of the entry that are in it.
        is_whole: all of it, not its beginning alone.
        fewer_holes: the entry's holes, as a negative number.
    """

    begins: bool
    certain: int
    is_whole: bool
    fewer_holes: int


class _Index:
    """Entries by their words.

    Args:
        entries: in their order.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = [*entries]
        self._of_word: dict[str, list[int]] = defaultdict(list)
        for number, entry in enumerate(self.entries):
            for word in entry.words:
                self._of_word[word].append(number)
        self._by_rarest: dict[str, list[int]] = defaultdict(list)
        for number, entry in enumerate(self.entries):
            self._by_rarest[self._rarest(entry)].append(number)

    def _rarest(self, entry: Entry) -> str:
        """The word of it that the fewest others have, and that is a word wherever it stands; ""."""
        words = [
            match[0]
            for number, piece in enumerate(entry.pieces)
            for match in WORD.finditer(piece)
            if match.end() < len(piece) and (match.start() > 0 or number == 0)
        ]
        return min(words, key=lambda word: len(self._of_word[word]), default="")

    def best_whole(self, line: str) -> "_Hit | None":
        """The entry all of whose pieces are in the line."""
        numbers = (n for word in {"", *WORD.findall(line)} for n in self._by_rarest.get(word, ()))
        return _best(self.entries, sorted(numbers), line, _whole)

    def best_part(self, line: str) -> "_Hit | None":
        """The entry that the line is a part of, or has its beginning."""
        shared: Counter[int] = Counter()
        for word in {*WORD.findall(line)}:
            shared.update(self._of_word.get(word, ()))
        # The last word may be cut off.
        likely = sorted(n for n, count in shared.items() if count >= _FEWEST_WORDS - 1)
        return _best(self.entries, likely, line, _part)


_Hit = tuple[_Fit, Entry]


@lru_cache(maxsize=1)
def _index(entries: tuple[Entry, ...]) -> _Index:
    return _Index(entries)


def lookup(text: str, entries: Iterable[Entry]) -> list[Entry]:
    """The entries of what is pasted: a message, its first words, or lines that have several.

    Args:
        text: what somebody saw, line ends and all.
        entries: to look in.
    """
    index = _index(tuple(entries))
    lines = [*_lines(text)]
    whole = [index.best_whole(line) for line in lines]
    tail = len(lines) - _MOST_PARTS
    parts = [index.best_part(line) if n >= tail else None for n, line in enumerate(lines)]
    hits = [
        _better(line, *pair) for line, *pair in zip(lines, whole, parts, strict=True) if any(pair)
    ]
    if 1 < len(lines) <= _MOST_WRAPPED:
        wrapped = _BEFORE.sub("", " ".join(text.split()))
        joined = index.best_whole(wrapped) or index.best_part(wrapped)
        # A message that a terminal has wrapped is none of its lines.
        if joined and (not hits or joined[0] > max(fit for fit, _ in hits)):
            hits = [joined]
    return [*dict.fromkeys(entry for _, entry in hits)]


def _better(line: str, whole: _Hit | None, part: _Hit | None) -> _Hit:
    """A beginning that is certain of more says more than a short message within the line."""
    if whole is None or part is None:
        found = whole or part
        assert found is not None
        return found
    # One that ends in a hole would be all of any line.
    is_all = whole[1].pieces[-1] and _is_all(whole[1], line)
    return whole if is_all or whole[0] >= part[0] else part


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
    """Without what stands before messages; of lines that differ in numbers alone the first."""
    seen = set()
    for line in text.splitlines():
        cut = line[:_LONGEST_LINE]
        shown = " ".join((_BEFORE.sub("", cut) or cut).split())
        shape = _DIGITS.sub("0", shown)
        if shown and shape not in seen:
            seen.add(shape)
            yield shown


def _best(
    entries: list[Entry],
    numbers: Iterable[int],
    line: str,
    fits: Callable[[Entry, str], _Fit | None],
) -> _Hit | None:
    found = ((fit, entries[n]) for n in numbers if (fit := fits(entries[n], line)) is not None)
    return max(found, key=lambda pair: pair[0], default=None)


def _whole(entry: Entry, line: str) -> _Fit | None:
    """Are all pieces in the line, in order?"""
    if entry.longest not in line or (entry.is_ours and not _is_told(entry, line)):
        return None
    place = 0
    for number, piece in enumerate(entry.pieces):
        at = line.find(piece, place)
        if at < 0 or (number == 0 and piece and _inside_a_word(line, at)):
            return None
        place = at + len(piece)
    return _Fit(True, sum(map(len, entry.pieces)), True, -len(entry.pieces))


def _is_told(entry: Entry, line: str) -> bool:
    """Has an entry words enough to be found within a line, or is it all of this one?"""
    if _tells("\0".join(entry.pieces), _WORDS_OF_A_TEMPLATE):
        return True
    return _is_all(entry, line)


def _is_all(entry: Entry, line: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, entry.pieces)) + r"\W*", line) is not None


def _part(entry: Entry, line: str) -> _Fit | None:
    """Does the line end before the last piece, or begin after the first of them?"""
    if all(piece in line for piece in entry.pieces):
        return None
    for first in range(len(entry.pieces)):
        if certain := _begins(entry.pieces, first, line):
            return _Fit(not first, certain, False, 0)
    if _tells(line) and any(line in piece for piece in entry.pieces):
        return _Fit(False, len(line), False, 0)
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
            return certain if first == 0 and _tells(seen, _WORDS_OF_A_BEGINNING) else 0
        if at < 0:
            certain, seen = certain + end, seen + piece[:end]
            break
        if number == 0 and piece and _inside_a_word(line, at):
            return 0
        certain, place, seen = certain + len(piece), at + len(piece), f"{seen} {piece}"
    # `name (value) relation` tells more than its words.
    is_named = bool(pieces[0]) or (pieces[1].startswith(" (") and " " not in line.split(" (")[0])
    return certain if _tells(seen, 2 if first == 0 and is_named else _FEWEST_WORDS) else 0


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
