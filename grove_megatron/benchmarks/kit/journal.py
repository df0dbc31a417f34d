"""What happened, a JSON line each, written at once: a kill loses nothing that was over."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

JOURNAL = "results.jsonl"


def note(folder: Path, kind: str, **what: Any) -> None:
    """Add a line; several processes may, each line is one write."""
    line = json.dumps({"kind": kind, **what}) + "\n"
    handle = os.open(folder / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, line.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def notes(folder: Path) -> Iterator[dict[str, Any]]:
    """All lines; one that a kill cut off is passed over.

    Raises:
        ValueError: there are none.
    """
    path = folder / JOURNAL
    if not path.is_file():
        raise ValueError(f"folder ({folder}) has no {JOURNAL}; name one that run.sh has written")
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict) and "kind" in found:
            yield found
