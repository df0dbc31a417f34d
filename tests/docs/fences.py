"""The fenced blocks of the documents, and what the comments before them say."""

import re
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(
    r"(?:^ *<!-- ([a-z ]+):\s((?:(?!-->).)*?) -->\n\n?)?^( *)```(\w+)\n(.*?)^\3```$",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Fence:
    """A block of a document.

    Attributes:
        document: path from the root of the repository.
        line: of its first line of text, from 1.
        language: as it says, ``sh`` for one.
        text: what is in it.
        mark, said: of the comment before it, ``<!-- mark: said -->``; or empty.
        span: of its text in the document.
    """

    document: str
    line: int
    language: str
    text: str
    mark: str
    said: str
    span: tuple[int, int]

    @property
    def name(self) -> str:
        return f"{self.document}:{self.line}"


@cache
def documents() -> tuple[str, ...]:
    """Every Markdown file of the repository, found without git."""
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    made = ("runs", "build", "dist")
    kept = (
        path.as_posix()
        for path in found
        if path.parts[0] not in made and not any(part.startswith(".") for part in path.parts)
    )
    return tuple(sorted(kept))


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def fences_in(text: str, document: str) -> list[Fence]:
    """The blocks of a text."""
    return [
        Fence(
            document=document,
            line=text.count("\n", 0, match.start(5)) + 1,
            language=match[4],
            text=textwrap.dedent(match[5]) if match[3] else match[5],
            mark=match[1] or "",
            said=" ".join((match[2] or "").split()),
            span=match.span(5),
        )
        for match in _FENCE.finditer(text)
    ]


@cache
def fences(*languages: str) -> tuple[Fence, ...]:
    """All blocks of these languages, or of any."""
    found = (fence for name in documents() for fence in fences_in(read(name), name))
    return tuple(fence for fence in found if not languages or fence.language in languages)


def inline_code(document: str) -> list[str]:
    """What a document has between single backquotes, outside of its blocks."""
    return _INLINE.findall(_FENCE.sub("", read(document)))
