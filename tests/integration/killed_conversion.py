"""Runs in a process of its own: a conversion slow enough to be killed while it works."""

import os
import signal
import sys
import threading
import time
from typing import Any

# A tensor and a file that is made durable take at least so long.
READ, SYNC = 0.004, 0.02


def convert(
    argv: list[str],
    kill_after: float | None = None,
    kill_at_read: int | None = None,
    kill_at_sync: int | None = None,
) -> None:
    """``grove`` with ``argv``, in small files; undisturbed and not slow without a moment to die.

    Args:
        argv: of the command.
        kill_after: seconds from the first tensor to SIGKILL.
        kill_at_read: SIGKILL before this tensor, counted from 0.
        kill_at_sync: SIGKILL before this one of the last steps that give the result its name.
    """
    from grove_megatron.checkpoint import sinks, staging
    from grove_megatron.checkpoint.checked import CheckedReader
    from grove_megatron.cli import main

    # A checkpoint of a small model would be one file.
    sinks.MegatronSink.__init__.__defaults__ = (20_000,)
    read, sync = CheckedReader.read, staging._sync
    reads: list[str] = []
    synced: list[Any] = []

    def slow_read(self: CheckedReader, name: str) -> Any:
        if not reads and kill_after is not None:
            threading.Timer(kill_after, _kill).start()
        if len(reads) == kill_at_read:
            _kill()
        reads.append(name)
        time.sleep(READ if kill_after is not None else 0)
        return read(self, name)

    def slow_sync(path: Any) -> None:
        if len(synced) == kill_at_sync:
            _kill()
        synced.append(path)
        time.sleep(SYNC if kill_after is not None else 0)
        sync(path)

    CheckedReader.read, staging._sync = slow_read, slow_sync
    sys.argv = ["grove", *argv]
    main()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
