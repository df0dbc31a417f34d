"""SIGTERM and Ctrl-C, heard by a thread: the main thread may wait in a collective for long.

torchrun sends SIGTERM to the other ranks of a node as soon as one has ended, which must not cut off
the message about that one; and it passes on Ctrl-C, of which every rank would show a traceback.
"""

import contextlib
import signal
import socket
from typing import Any

_DEFAULTS: dict[int, Any] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}


class Termination:
    """Takes both over where they would end the process; made in the main thread.

    A handler of somebody else, installed before or after (``--exit-signal-handler``), is respected.
    """

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        for end in (self.reader, self._writer):
            end.setblocking(False)
        self._ours = [n for n, default in _DEFAULTS.items() if signal.getsignal(n) is default]
        self._before = -1
        if self._ours:
            for number in self._ours:
                signal.signal(number, _heard)
            self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def asked(self) -> int | None:
        """After ``reader`` has become readable: the signal, if it is one of ours to follow."""
        with contextlib.suppress(BlockingIOError):
            numbers = self.reader.recv(4096)
            ours = (n for n in self._ours if n in numbers and signal.getsignal(n) is _heard)
            return next(ours, None)
        return None

    def undo(self) -> None:
        """Leave both as they were; in the main thread."""
        if self._ours:
            signal.set_wakeup_fd(self._before)
        for number in self._ours:
            if signal.getsignal(number) is _heard:
                signal.signal(number, _DEFAULTS[number])
        self._ours = []


def _heard(number: int, frame: Any) -> None:
    """The thread does the rest."""
