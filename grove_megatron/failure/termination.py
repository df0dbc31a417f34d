"""SIGTERM, heard by a thread: the main thread may wait in a collective and never run a handler.

torchrun sends it to the other ranks of a node as soon as one has ended, which must not cut off the
message about that one.
"""

import contextlib
import signal
import socket
from typing import Any


class Termination:
    """Takes SIGTERM over where it would end the process; made in the main thread.

    A handler of somebody else, installed before or after (``--exit-signal-handler``), is respected.
    """

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        for end in (self.reader, self._writer):
            end.setblocking(False)
        self._ours = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        self._before = -1
        if self._ours:
            signal.signal(signal.SIGTERM, _heard)
            self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def is_asked(self) -> bool:
        """After ``reader`` has become readable: was it SIGTERM, and is it ours to follow?"""
        with contextlib.suppress(BlockingIOError):
            numbers = self.reader.recv(4096)
            return signal.SIGTERM in numbers and signal.getsignal(signal.SIGTERM) is _heard
        return False

    def undo(self) -> None:
        """Leave SIGTERM as it was; in the main thread."""
        if self._ours:
            signal.set_wakeup_fd(self._before)
            if signal.getsignal(signal.SIGTERM) is _heard:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._ours = False


def _heard(number: int, frame: Any) -> None:
    """The thread does the rest."""
