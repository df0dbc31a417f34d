"""A process of an item: forked from what has imported Megatron, ended with all it started."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...failure.orphans import end_with_parent

_ASK_SECONDS = 2.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Ended:
    """How it ended: its exit code, and whether it was out of time."""

    code: int
    cut_off: bool
    seconds: float


def run_child(call: Callable[[], int], log: Path, limit: float) -> Ended:
    """Call it in a forked process, its output appended to ``log``.

    Args:
        call: returns an exit code.
        limit: seconds; then it is interrupted, and soon after killed with its children.
    """
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _be_the_child(call, log)
    cut_off, asked, status = False, 0.0, None
    try:
        while status is None:
            done, waited = os.waitpid(pid, os.WNOHANG)
            if done:
                status = waited
                break
            now = time.monotonic()
            if not cut_off and now - began > limit:
                cut_off, asked = True, now
                # Tests end what they have started when they are interrupted.
                os.kill(pid, signal.SIGINT)
            elif cut_off and now - asked > _ASK_SECONDS:
                _kill([pid, *_below(pid)])
            time.sleep(_LOOK_SECONDS)
    except BaseException:
        _kill([pid, *_below(pid)])
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        raise
    _kill(_of_group(pid))
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, cut_off, time.monotonic() - began)


def _be_the_child(call: Callable[[], int], log: Path) -> None:
    code = 1
    try:
        end_with_parent()
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        # A shell has what it starts with & ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        code = call()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)


def _below(pid: int) -> list[int]:
    """All processes that it has started, and they in turn."""
    parents: dict[int, list[int]] = {}
    for child, parent, _ in _processes():
        parents.setdefault(parent, []).append(child)
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def _of_group(group: int) -> list[int]:
    """What it has left behind in its process group."""
    return [pid for pid, _, of in _processes() if of == group and pid != group]


def _processes() -> list[tuple[int, int, int]]:
    """(process, parent, process group) of all."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name of a program, in parentheses, may hold anything.
            _, parent, group, *_ = status.read_text(errors="replace").rpartition(")")[2].split()
            found.append((int(status.parent.name), int(parent), int(group)))
    return found


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
