"""The systems that ``grove verify --layer`` knows, one file each.

A file has NAMES, what its folders and ``system`` in their config.json are called, and ``system``,
which reads config.json.
"""

import re
from collections.abc import Callable
from pathlib import Path

from ..settings import Settings
from ..system import System
from . import (
    base,
    by_flags,
    dbrx,
    deepseek_v2,
    deepseek_v3,
    grok1,
    hash_layer,
    mixtral,
    moepp,
    olmoe,
    qwen2_moe,
    qwen3_moe,
    skywork,
    st_moe,
    switch,
    yuan,
)

_FILES = (
    *(mixtral, qwen2_moe, qwen3_moe, olmoe, dbrx, grok1, deepseek_v2, deepseek_v3, switch, moepp),
    # Read, and wait for a part of the router.
    *(skywork, yuan, hash_layer, base, st_moe, by_flags),
)


def find_system(called: object, folder: Path) -> Callable[[Settings], System] | None:
    """Which one a folder is of; None if none.

    Args:
        called: ``system`` of its config.json; without one the folder's name decides.
        folder: with the files.
    """
    name = folder.resolve().name if called is None else called
    known = {_letters(name): file.system for file in _FILES for name in file.NAMES}
    return known.get(_letters(name)) if isinstance(name, str) else None


def known_systems() -> list[str]:
    """First names, for a message."""
    return [file.NAMES[0] for file in _FILES]


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
