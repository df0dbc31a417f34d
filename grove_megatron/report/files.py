"""Files that are all new, or all as they were before."""

import os
from collections.abc import Mapping
from pathlib import Path


def write_files(contents: Mapping[Path, bytes]) -> list[Path]:
    """Write every file under another name beside it, and rename them when all are written.

    Returns:
        the files, in order; their folders are made.
    """
    beside: dict[Path, Path] = {}
    try:
        for file, content in contents.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            new = file.with_name(f".{file.name}.{os.getpid()}.new")
            beside[new] = file
            new.write_bytes(content)
        for new, file in beside.items():
            new.replace(file)
    finally:
        for new in beside:
            new.unlink(missing_ok=True)
    return list(contents)
