"""A helper process of a rank ends with it, in whatever way the rank does."""

import contextlib
import ctypes
import multiprocessing
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Called in a child process.

    A manager serves for ever otherwise: nobody tells it that the rank was killed, and whoever reads
    the output of the job waits for the end of every process that could write to it.
    """
    # Linux alone has it.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():
        os._exit(1)  # it was gone before
