"""The kept messages, which need no source to be read."""

import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from .hole import HOLE

WORD = re.compile(r"[A-Za-z_-]{2,}")
"""What tells messages apart."""

FOLDER = Path(__file__).parent
KEPT = FOLDER / "messages.json"
NOTES = FOLDER / "notes.toml"
FOREIGN = FOLDER / "foreign.toml"


@dataclass(frozen=True)
class Entry:
    """A message.

    Args:
        text: as one would see it, with ``…`` for what is known when it is said.
        source: the module of this package without ``.py``, or the file of Megatron or torch.
        note: what to do, where the message does not say enough; "".
        is_ours: does this package say it?
    """

    text: str
    source: str
    note: str = ""
    is_ours: bool = True

    @cached_property
    def pieces(self) -> list[str]:
        """What is certain of it, in order."""
        return self.text.split(HOLE)

    @cached_property
    def longest(self) -> str:
        """The longest of its pieces."""
        return max(self.pieces, key=len)

    @cached_property
    def words(self) -> frozenset[str]:
        """The words that tell it from others."""
        return frozenset(WORD.findall(self.text))

    @property
    def flag(self) -> str:
        """The first flag it names, or ""."""
        named = (word.strip("(),:;'`") for word in self.text.split())
        return next((word for word in named if word.startswith("--") and len(word) > 3), "")


@dataclass(frozen=True)
class Note:
    """Of all messages that begin with ``words``."""

    words: str
    text: str


def notes(file: Path = NOTES) -> list[Note]:
    """As they are written."""
    return [Note(_line(row["words"]), _line(row["note"])) for row in _rows(file, "note")]


def foreign(file: Path = FOREIGN) -> list[Entry]:
    """What Megatron and torch say."""
    return [
        Entry(_line(row["text"]), row["file"], _line(row["note"]), is_ours=False)
        for row in _rows(file, "message")
    ]


def with_notes(rows: Iterable[tuple[str, str]], known: list[Note]) -> list[Entry]:
    """Messages with the longest note that is of them."""
    found = []
    for text, source in rows:
        of_it = [note for note in known if text.startswith(note.words)]
        best = max(of_it, key=lambda note: len(note.words), default=None)
        found.append(Entry(text, source, best.text if best else ""))
    return found


@cache
def entries() -> tuple[Entry, ...]:
    """All of them."""
    rows = json.loads(KEPT.read_text(encoding="utf-8"))
    kept = [(text, source) for source, texts in rows.items() for text in texts]
    return (*with_notes(kept, notes()), *foreign())


def _rows(file: Path, name: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = tomllib.loads(file.read_text(encoding="utf-8"))[name]
    return rows


def _line(text: str) -> str:
    return " ".join(text.split())
