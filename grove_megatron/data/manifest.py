"""What is said beside data files of how they were made."""

import json
from pathlib import Path
from typing import Any

FORMAT = "grove_data"


def manifest_of(prefix: Path) -> Path:
    """The manifest of a prefix."""
    return prefix.with_name(f"{prefix.name}.json")


def read_manifest(prefix: Path) -> dict[str, Any] | None:
    """The manifest beside data files, if there is one of ours that can be read."""
    try:
        found = json.loads(manifest_of(prefix).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None
