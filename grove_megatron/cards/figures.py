"""What was measured of parts, if it was."""

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from . import small

FILE = small.CHECKOUT / "docs" / "parts" / "figures.json"
"""An object of ``command``, ``machine``, ``date`` and ``rows``: one a part, ``part`` as its card is
called, and the numbers below. Written by what compares parts, not by hand."""

_COLUMNS = {
    "seeds": "seeds",
    "loss": "loss",
    "loss_spread": "between seeds",
    "max_vio": "MaxVio",
    "dead_experts": "dead experts",
    "pairs_per_token": "pairs a token",
    "rows_per_token": "rows a token",
    "tokens_per_second": "tokens a second",
}


def measured() -> dict[str, Any] | None:
    """The file, or None."""
    if not FILE.is_file():
        return None
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def lines(name: str, found: dict[str, Any] | None) -> Iterator[str]:
    """Of the part whose card is called ``name``; found: see :func:`measured`."""
    rows = [row for row in found["rows"] if row["part"] == name] if found else []
    if not rows or found is None:
        yield "Not measured."
        return
    yield textwrap.fill(f"*Measured* on {found['machine']}, {found['date']}, with", 100)
    yield f"\n```sh\n{found['command']}\n```\n"
    yield f"| {' | '.join(['router', *_COLUMNS.values()])} |"
    yield f"| --- |{' ---: |' * len(_COLUMNS)}"
    for row in rows:
        cells = [row["name"], *(_shown(row.get(key)) for key in _COLUMNS)]
        yield f"| {' | '.join(cells)} |"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
