"""Files of a stranger: pickles that would make a file if anything in them ran."""

import builtins
import io
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Planted:
    """Unpickling it calls a function of any module with any arguments."""

    def __init__(self, call: Callable[..., Any], *arguments: Any):
        self._call = call, arguments

    def __reduce__(self) -> Any:
        return self._call


def foreign(text: str) -> object:
    """A function of a module that is none of Python's."""
    exec(text)
    return None


KINDS: dict[str, Callable[[Path], Planted]] = {
    "a command": lambda marker: Planted(os.system, f"touch {marker}"),
    "a program": lambda marker: Planted(subprocess.check_output, ["touch", str(marker)]),
    "a line of Python": lambda marker: Planted(builtins.exec, f"open({str(marker)!r}, 'w')"),
    "a function of a package": lambda marker: Planted(foreign, f"open({str(marker)!r}, 'w')"),
    "a pickle in it": lambda marker: Planted(
        pickle.loads, pickle.dumps(KINDS["a command"](marker))
    ),
}


def saved(content: object) -> bytes:
    """As ``torch.save`` writes it."""
    target = io.BytesIO()
    torch.save(content, target)
    return target.getvalue()


def assert_it_would_run(pickled: bytes, marker: Path) -> None:
    """The file does what it was planted for, where somebody reads it without care."""
    pickle.loads(pickled)
    assert marker.exists()
    marker.unlink()
