"""Whether what Megatron and torch are said to say is in their files."""

import ast
import importlib.metadata
import mmap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from .entries import Entry

# A name in C's formats stands between pieces of text as well.
_SHORTEST = 4


def unsaid(entries: Iterable[Entry]) -> Iterator[str]:
    """A line for each entry whose text is not in its file; nothing of a file that is not there.

    A machine without CUDA's libraries has none of their messages either.
    """
    for entry in entries:
        path = _path(entry.source)
        if path is None:
            continue
        missing = [piece for piece in _pieces(entry) if not _has(path, piece)]
        if missing:
            yield f"{entry.source} does not say {missing[0]!r} (of {entry.text!r}); correct it"


def is_there(entry: Entry) -> bool:
    """Is its file on this machine?"""
    return _path(entry.source) is not None


def _pieces(entry: Entry) -> Iterator[str]:
    return (piece.strip() for piece in entry.pieces if len(piece.strip()) >= _SHORTEST)


@cache
def _path(name: str) -> Path | None:
    # Next to torch, wherever a clone of Megatron on PYTHONPATH is.
    package = {"megatron": "megatron-core"}.get(name.split("/")[0], "torch")
    found = Path(str(importlib.metadata.distribution(package).locate_file(name)))
    return found if found.is_file() else None


def _has(path: Path, piece: str) -> bool:
    if path.suffix == ".py":
        return any(piece in text for text in _texts(path))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(piece.encode()) >= 0


@cache
def _texts(path: Path) -> tuple[str, ...]:
    """Every text of a file, with blanks as one; the parts of one are joined as Python does it."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    texts = (n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return tuple(" ".join(text.replace("{}", " ").split()) for text in texts)
