"""Connections from every node to every other, and how far apart their clocks are.

Every node opens a port of the system's choice, from the range that gloo and NCCL take theirs of,
and the others come in by it: a firewall, a route that is missing and a hostname that means another
machine are found by what happens.
"""

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median

from .meeting import Meeting
from .records import Reached

_SECONDS = 5.0
_PROBES = 9
_AT_ONCE = 16
_TIME = struct.Struct("!d")


def now() -> float:
    """Seconds of this node's clock."""
    return time.time()


def reach(meeting: Meeting, address: str) -> Reached | None:
    """Go to every other node; every rank must call.

    Args:
        meeting: of the ranks.
        address: where this node is reached, for its first rank.

    Returns:
        What this node found, on its first rank.
    """
    if not meeting.is_first:
        meeting.told(None)
        meeting.wait()
        return None
    with _door(f"{meeting.token} {meeting.mine}") as port:
        doors: list[tuple[str, str, int]] = meeting.told((meeting.mine, address, port))
        # That of rank 0 is what the job meets at, whatever its own node takes it for.
        doors[0] = (doors[0][0], os.environ.get("MASTER_ADDR", doors[0][1]), doors[0][2])
        others = [door for door in doors if door[0] != meeting.mine]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = [*pool.map(lambda door: _visit(meeting.token, *door), others)]
        why = {name: f for (name, _, _), f in zip(others, found, strict=True) if isinstance(f, str)}
        offset, uncertainty = _clock(meeting, doors[0])
        meeting.wait()
    return Reached(node=meeting.mine, offset=offset, uncertainty=uncertainty, unreachable=why)


def _clock(meeting: Meeting, first: tuple[str, str, int]) -> tuple[float | None, float]:
    """How far this clock is ahead of rank 0's, and how sure that is."""
    if first[0] == meeting.mine:
        return 0.0, 0.0
    # Alone, when the others no longer wait for an answer of this process.
    found = _visit(meeting.token, *first)
    return (None, 0.0) if isinstance(found, str) else found


def _visit(token: str, name: str, address: str, port: int) -> str | tuple[float, float]:
    """Seconds ahead of another node and half a round trip; or why it was not reached."""
    expected = f"{token} {name}".encode()
    try:
        with socket.create_connection((address, port), timeout=_SECONDS) as door:
            door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if _exactly(door, len(expected)) != expected:
                return f"somebody else answers at {address} port {port}"
            probes = []
            for _ in range(_PROBES):
                left = now()
                door.sendall(b"?")
                (there,) = _TIME.unpack(_exactly(door, _TIME.size))
                back = now()
                probes.append(((left + back) / 2 - there, (back - left) / 2))
    except OSError as error:
        return f"{error.strerror or error} (port {port})"
    return median(offset for offset, _ in probes), median(half for _, half in probes)


def _exactly(door: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        piece = door.recv(count - len(got))
        if not piece:
            raise ConnectionError("the connection was closed")
        got += piece
    return got


@contextmanager
def _door(word: str) -> Iterator[int]:
    """A port at which everybody is told ``word``, and then the time as often as they ask."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", 0), family=family, backlog=512, dualstack_ipv6=both) as listener:
        thread = threading.Thread(target=_serve, args=(listener, word.encode()), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            # A closed socket does not wake up who waits at it.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(_SECONDS)


def _serve(listener: socket.socket, word: bytes) -> None:
    while True:
        try:
            visitor, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(visitor, word), daemon=True).start()


def _answer(visitor: socket.socket, word: bytes) -> None:
    visitor.settimeout(_SECONDS)
    try:
        with visitor:
            visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            visitor.sendall(word)
            while visitor.recv(1):
                visitor.sendall(_TIME.pack(now()))
    except OSError:
        return
