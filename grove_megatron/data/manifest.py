"""What is said beside data files of how they were made."""

import json
from pathlib import Path
from typing import Any

FORMAT = "grove_data"


def manifest_of(prefix: Path) -> Path:
    """The manifest of a prefix."""
    return prefix.with_name(f"{prefix.name}.json")


def read_manifest(prefix: Path) -> dict[str, Any] | None:
    """The manifest beside data files, if there is one of ours; whatever else has that name is not.

    Raises:
        ValueError: it is ours, and lacks what is needed of it.
    """
    try:
        found = json.loads(manifest_of(prefix).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return None
    tokenizer = found.get("tokenizer")
    good = isinstance(tokenizer, dict) and all(
        isinstance(tokenizer.get(name), kind)
        for name, kind in (("kind", str), ("model", str), ("fingerprint", str), ("size", int))
    )
    if not good or not isinstance(found.get("bin_sha256"), str):
        raise ValueError(
            f"{manifest_of(prefix)} is a manifest that lacks its tokenizer or checksum; make the "
            "data anew, or remove the manifest"
        )
    return found
