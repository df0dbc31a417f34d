"""The connection between a rank and rank 0: JSON lines over TCP, and the kernel's own watch on it.

A connection and not a heartbeat: the kernel answers for a process that is slow, stopped in a
debugger or holds the interpreter for minutes, and closes it at once when the process ends in
whatever way.
"""

import contextlib
import json
import select
import socket
import threading
import time
from typing import Any

VANISHED_SECONDS = 20
"""How long a machine may not answer until its connections are closed."""
_MOST_UNSENT = 1 << 20


def set_keepalive(connection: socket.socket) -> None:
    """Have the kernel notice a machine that vanishes without closing its connections."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Linux names; elsewhere the system's own, longer times hold.
    for name, value in (
        ("TCP_KEEPIDLE", 5),
        ("TCP_KEEPINTVL", 3),
        ("TCP_KEEPCNT", (VANISHED_SECONDS - 5) // 3),
        # Also for what was sent and never acknowledged; in milliseconds.
        ("TCP_USER_TIMEOUT", VANISHED_SECONDS * 1000),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Lines:
    """JSON objects, one a line, over a connection that is not blocking.

    What a peer does not take in time goes before the next line; only whole lines are dropped, of a
    peer that has stopped for long.

    Args:
        patience: seconds that :meth:`send` may wait until the peer has taken all.
    """

    def __init__(self, connection: socket.socket, *, patience: float = 0.0) -> None:
        connection.setblocking(False)
        set_keepalive(connection)
        self.connection = connection
        self._patience = patience
        self._rest = b""
        self._unsent = bytearray()
        # A rank's main thread says how it ends, another one the rest.
        self._sending = threading.Lock()

    def send(self, **said: Any) -> None:
        """Send one object; nothing happens if the peer is gone."""
        line = json.dumps(said).encode() + b"\n"
        with self._sending, contextlib.suppress(OSError):  # reading will say so
            if len(self._unsent) < _MOST_UNSENT:
                self._unsent += line
            self._flush(time.monotonic() + self._patience)

    def _flush(self, deadline: float) -> None:
        while self._unsent:
            try:
                del self._unsent[: self.connection.send(self._unsent)]
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                select.select([], [self.connection], [], left)

    def receive(self) -> list[dict[str, Any]] | None:
        """Every whole line that has come, {} for one that is no object; None: it is closed."""
        try:
            data = self.connection.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [_object(line) for line in lines]

    def close(self) -> None:
        self.connection.close()


def _object(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        said = json.loads(line)
        return said if isinstance(said, dict) else {}
    return {}
