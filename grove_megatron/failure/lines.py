"""The connection between a rank and rank 0: JSON lines over TCP, and the kernel's own watch on it.

A connection and not a heartbeat: the kernel answers for a process that is slow, stopped in a
debugger or holds the interpreter for minutes, and closes it at once when the process ends in
whatever way.
"""

import contextlib
import json
import socket
from typing import Any

VANISHED_SECONDS = 20
"""How long a machine may not answer until its connections are closed."""


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

    Nothing here waits: what a peer does not take is dropped, as a peer that does not read a few
    hundred bytes has stopped.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        set_keepalive(connection)
        self.connection = connection
        self._rest = b""

    def send(self, **said: Any) -> None:
        """Send one object; nothing happens if the peer is gone."""
        with contextlib.suppress(OSError):  # reading will say so
            self.connection.send(json.dumps(said).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Every whole object that has come; None once the connection is closed."""
        try:
            data = self.connection.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self.connection.close()
