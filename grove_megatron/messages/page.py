"""The pages of ``docs/troubleshooting``: every message, by where it comes from."""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

from .areas import AREAS, area_of, place_of
from .entries import Entry, foreign, notes, with_notes
from .source import PACKAGE

FOLDER = PACKAGE.parent / "docs" / "troubleshooting"
_MADE = "Made by `python -m grove_megatron.messages --write`; not edited by hand."
_OTHERS = "megatron-and-torch"
_INDEX = f"""# Troubleshooting by message

{_MADE}

Every message of this package, as one sees it, with … for what is known only when it is said:
numbers, paths, names. Search these pages for the first words of one, or ask for it:

```sh
grove explain '--grove-num-groups (3) does not divide --num-experts (8)'
tail -n 50 job.log | grove explain
```

A message says `what (its value) is wrong with what else (its value); what to do`. Where that does
not say enough, a note follows.

| page | messages | with a note |
| --- | ---: | ---: |"""
_HEAD_OF_OTHERS = f"""# What Megatron and torch say

{_MADE}

Messages of Megatron 0.19 and of torch that users of this package meet, and what to do. Many of them
this package says before, in its own words, as `grove doctor` does; they appear where a job was not
started through it, or has no Grove flags.
"""


def pages(found: dict[str, list[str]]) -> dict[str, str]:
    """Every file by name, as it is to be.

    Args:
        found: texts by module.
    """
    known = notes()
    rows = ((text, module) for module, texts in found.items() for text in texts)
    of_area: dict[str, list[Entry]] = {area: [] for area in AREAS}
    for entry in with_notes(rows, known):
        of_area[area_of(entry.source)].append(entry)
    index = [_INDEX]
    for area, entries in of_area.items():
        noted = sum(bool(entry.note) for entry in entries)
        index.append(f"| [{AREAS[area]}]({area}.md) | {len(entries)} | {noted} |")
    others = foreign()
    index.append(f"| [What Megatron and torch say]({_OTHERS}.md) | {len(others)} | {len(others)} |")
    made = {f"{area}.md": "\n".join(_page(area, of_area[area])) + "\n" for area in AREAS}
    made[f"{_OTHERS}.md"] = "\n".join(_foreign(others)) + "\n"
    return {"README.md": "\n".join(index) + "\n"} | made


def stale(found: dict[str, list[str]], folder: Path = FOLDER) -> list[str]:
    """Pages that are not as they are to be, a line each."""
    made = pages(found)
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    lines = [f"{name}: nothing makes it" for name in there.keys() - made.keys()]
    lines += [f"{name}: out of date" for name, text in made.items() if there.get(name) != text]
    return [f"docs/troubleshooting/{line}" for line in sorted(lines)]


def unused_notes(found: dict[str, list[str]]) -> list[str]:
    """Notes of messages that nobody says any more, a line each."""
    texts = [text for of_module in found.values() for text in of_module]
    return [
        f"notes.toml: no message begins with {note.words!r}; correct or remove the note"
        for note in notes()
        if not any(text.startswith(note.words) for text in texts)
    ]


def _page(area: str, entries: list[Entry]) -> Iterator[str]:
    yield f"# {AREAS[area]}\n\n{_MADE}"
    modules = dict.fromkeys(entry.source for entry in entries)
    for module in modules:
        of_it = [entry for entry in entries if entry.source == module]
        yield f"\n## {module}\n"
        yield from _wrapped(_about(module))
        yield ""
        yield from _block([entry for entry in of_it if not entry.note])
        for note in dict.fromkeys(entry.note for entry in of_it if entry.note):
            yield from _block([entry for entry in of_it if entry.note == note])
            yield from _wrapped(note)
            yield ""


def _foreign(entries: list[Entry]) -> Iterator[str]:
    yield _HEAD_OF_OTHERS
    for entry in entries:
        yield from _block([entry])
        yield from _wrapped(f"In {entry.source}. {entry.note}")
        yield ""


def _block(entries: list[Entry]) -> Iterator[str]:
    if entries:
        yield "```text"
        yield from (entry.text for entry in entries)
        yield "```\n"


def _about(module: str) -> str:
    """The first sentence of the module's docstring."""
    path = PACKAGE.parent / f"{place_of(module)}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    text = " ".join((ast.get_docstring(tree) or module).split("\n\n")[0].split())
    return text.replace("``", "`")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, break_on_hyphens=False, break_long_words=False)
