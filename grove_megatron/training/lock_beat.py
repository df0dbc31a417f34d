"""The small process beside rank 0 that shows that its locks are those of a living job.

Runs as a script without this package, for the few megabytes that a bare interpreter takes. It ends
with the process that started it, and where another job has taken a lock over: which happens if the
machine stood still or lost the file system for longer than others wait. What then becomes of the
job is for the job to say.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LOCK = "grove_megatron.lock"
LOST = 3
"""The exit code where a lock is another job's by now."""
_LOOK_SECONDS = 0.5
# Of a lock, whose first line is some hundred.
_MOST_BYTES = 65536


def start(folders: Sequence[Path], token: str, seconds: float) -> "subprocess.Popen[bytes]":
    """Count in the locks in ``folders`` every so many ``seconds``."""
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


def main(parent: int, token: str, seconds: float, folders: Sequence[int]) -> int:
    """Until the process of the number ``parent`` ends, or a lock is another job's; an exit code."""
    due, number, failing = 0.0, 0, False
    while os.getppid() == parent:
        if time.monotonic() >= due:
            due = time.monotonic() + seconds
            number += 1
            problem = ""
            for folder in folders:
                try:
                    if not _beat(folder, token, number):
                        return LOST
                except FileNotFoundError:
                    pass  # a lock that was removed is nobody's
                except OSError as error:
                    problem = str(error)
            # A file system that is away for a while comes back.
            if problem and not failing:
                sys.stderr.write(
                    f"\ngrove_megatron: {LOCK} cannot be written ({problem}); while that lasts, a "
                    "job on another machine may take this one for dead\n"
                )
                sys.stderr.flush()
            failing = bool(problem)
        time.sleep(_LOOK_SECONDS)
    return 0


def _beat(folder: int, token: str, number: int) -> bool:
    """Write ``number`` behind the first line of the lock; False if it is another job's.

    Content and not a time stamp, as file systems of a network keep what they know of a file for a
    minute and ask anew for what is in it. Through the one file that was read: whoever takes over
    puts another in its place.

    Raises:
        OSError: it cannot be written.
    """
    try:
        lock = os.open(LOCK, os.O_RDWR, dir_fd=folder)
    except PermissionError:
        lock = os.open(LOCK, os.O_RDONLY, dir_fd=folder)  # another user's by now?
    try:
        owner = os.read(lock, _MOST_BYTES).partition(b"\n")[0]
        try:
            if json.loads(owner)["token"] != token:
                return False
        except (ValueError, KeyError, TypeError):
            return True  # not a lock; nobody's
        os.pwrite(lock, b"\n%012d\n" % number, len(owner))
    finally:
        os.close(lock)
    return True


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), [*map(int, sys.argv[4:])]))
