"""Lines over a connection whose other end takes its time."""

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from grove_megatron.failure.lines import Lines

LARGE = "x" * 500_000


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Of a connection that holds much less than a large line."""
    server = socket.create_server(("127.0.0.1", 0))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    here = socket.socket()
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    here.connect(server.getsockname())
    there, _ = server.accept()
    server.close()
    yield here, there
    here.close()
    there.close()


def read(there: socket.socket, count: int) -> list[dict[str, str]]:
    there.settimeout(120)
    with there.makefile("r") as file:
        return [json.loads(file.readline()) for _ in range(count)]


def test_a_large_line_is_sent_whole_while_the_peer_reads(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    found: list[dict[str, str]] = []
    reader = threading.Thread(target=lambda: found.extend(read(ends[1], 1)), daemon=True)
    reader.start()
    Lines(ends[0], patience=120).send(text=LARGE)
    reader.join(120)
    assert found == [{"text": LARGE}]


def test_what_a_peer_has_not_taken_goes_before_the_next_line(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    lines = Lines(ends[0])
    begin = time.monotonic()
    lines.send(text=LARGE)
    lines.send(text=2 * LARGE)
    lines.send(text="dropped, as too much waits")
    assert time.monotonic() - begin < 60  # nothing waits for a peer that has stopped
    found: list[dict[str, str]] = []
    reader = threading.Thread(target=lambda: found.extend(read(ends[1], 3)), daemon=True)
    reader.start()
    while reader.is_alive() and time.monotonic() - begin < 120:
        lines.send(text="last")
        time.sleep(0.01)
    assert [one["text"] for one in found] == [LARGE, 2 * LARGE, "last"]


def test_a_line_that_is_no_object_does_not_hide_the_others(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ends[1].sendall(b'{"a": \n[1]\n\xff\n{"a": 1}\n')
    lines = Lines(ends[0])
    heard: list[dict[str, int]] = []
    while len(heard) < 4:
        heard += lines.receive() or []
    assert heard == [{}, {}, {}, {"a": 1}]
