"""The small process beside rank 0 that shows that its locks are those of a living job.

Runs as a script without this package, for the few megabytes that a bare interpreter takes. It ends
with the process that started it, and ends that process where another job has taken a lock over,
which happens if the machine stood still or lost the file system for longer than others wait.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LOCK = "grove_megatron.lock"
_LOOK_SECONDS = 0.5


def start(folders: Sequence[Path], token: str, seconds: float) -> "subprocess.Popen[bytes]":
    """Touch the locks in ``folders`` every so many ``seconds``."""
    # Open folders and not names: a folder that is moved keeps its lock.
    opened = [os.open(folder, os.O_RDONLY) for folder in folders]
    try:
        return subprocess.Popen(
            # Not the environment's modules; nothing but the standard library.
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), token, str(seconds)]
            + [str(descriptor) for descriptor in opened],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=opened,
            # Ctrl-C is for the job.
            start_new_session=True,
        )
    finally:
        for descriptor in opened:
            os.close(descriptor)


def main(parent: int, token: str, seconds: float, folders: Sequence[int]) -> None:
    """Until the process of the number ``parent`` ends."""
    due = 0.0
    while os.getppid() == parent:
        if time.monotonic() >= due:
            due = time.monotonic() + seconds
            for folder in folders:
                # A file system that is away for a while comes back.
                with contextlib.suppress(OSError):
                    if owner := _another(token, folder):
                        _end(parent, owner)
                    os.utime(LOCK, dir_fd=folder)
        time.sleep(_LOOK_SECONDS)


def _another(token: str, folder: int) -> str:
    """The lock if it is another job's by now; a lock that was removed is nobody's."""
    with open(os.open(LOCK, os.O_RDONLY, dir_fd=folder), errors="replace") as file:
        text = file.read()
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return "" if json.loads(text)["token"] == token else text
    return ""


def _end(parent: int, owner: str) -> None:
    sys.stderr.write(
        f"\ngrove_megatron: another job has taken over {LOCK} from process {parent}, of which "
        f"nothing was heard for too long; it ends, before both write: {owner}\n"
    )
    sys.stderr.flush()
    # A handler of SIGTERM might save once more.
    os.kill(parent, signal.SIGKILL)
    sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), [int(fd) for fd in sys.argv[4:]])
