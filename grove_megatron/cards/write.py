"""Writes the cards, and removes those of parts that are gone."""

from pathlib import Path

from ..parts import registry
from . import small
from .card import card, index, name_of
from .figures import measured

FOLDER = small.CHECKOUT / "docs" / "parts"
_INDEX = "README.md"


def pages() -> dict[str, str]:
    """Every file by name, as it is to be."""
    found = measured()
    cards = {f"{name_of(part)}.md": card(part, found) for part in registry.parts()}
    return {_INDEX: index()} | cards


def write(folder: Path = FOLDER) -> None:
    """All of them, and no others."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for path in folder.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
