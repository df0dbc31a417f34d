"""Messages as they are kept: by the module that says them, each once."""

import json
from collections import defaultdict

from .areas import AREAS, area_of
from .entries import KEPT
from .sinks import made
from .source import Source, source


def collected(of: Source | None = None) -> dict[str, list[str]]:
    """Texts by module, in the order of the pages; a text of several modules is of the first."""
    found: dict[str, list[str]] = defaultdict(list)
    seen: set[str] = set()
    everything = sorted(made(of or source()), key=lambda one: (one.module, one.line, one.text))
    for one in everything:
        if one.text not in seen:
            seen.add(one.text)
            found[one.module].append(one.text)
    # Of equal ones the first page's is the likeliest.
    pages = [*AREAS]
    return {name: found[name] for name in sorted(found, key=lambda n: (pages.index(area_of(n)), n))}


def kept(found: dict[str, list[str]]) -> str:
    """The file of them."""
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def is_kept(found: dict[str, list[str]]) -> bool:
    """Are these those of the file?"""
    return KEPT.is_file() and KEPT.read_text(encoding="utf-8") == kept(found)
