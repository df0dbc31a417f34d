"""Rank 0's side, with sockets in place of ranks."""

import json
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from grove_megatron.failure import hub
from grove_megatron.failure.hub import Hub


class Rank:
    """The other end of a connection."""

    def __init__(self, hub: Hub, rank: int, node: str = "0", token: str | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", hub.port), timeout=120)
        self.file = self.socket.makefile("r")
        self.say(token=token or hub.token, rank=rank, host=f"host{node}", node=node, pid=1)

    def say(self, **said: Any) -> None:
        self.socket.sendall(json.dumps(said).encode() + b"\n")

    def end(self, kind: str, text: str = "", code: int = 1) -> None:
        self.say(kind=kind, text=text, code=code)

    def hear(self) -> dict[str, Any] | None:
        line = self.file.readline()
        return json.loads(line) if line else None

    def hear_last(self) -> dict[str, Any] | None:
        """Answers a question for findings on the way."""
        while True:
            said = self.hear()
            if said is None or not ({"ask", "speaks"} & set(said)):
                return said
            if "ask" in said:
                self.say(findings=[])

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class Job:
    """A hub and its ranks, all connected."""

    def __init__(self, world_size: int, per_node: int) -> None:
        self.said: list[str] = []
        self.hub = Hub(world_size, self.said.append)
        self.hub.start()
        self.ranks = [Rank(self.hub, r, str(r // per_node)) for r in range(world_size)]
        if world_size > 1:
            assert self.ranks[1].hear() == {"speaks": True}

    def close(self) -> None:
        for rank in self.ranks:
            rank.close()
        self.hub.join(10)
        assert not self.hub.is_alive()


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """Six ranks on three nodes; the test's process is on the first."""
    monkeypatch.setenv("GROUP_RANK", "0")
    monkeypatch.setattr(hub, "_AT_MOST", 1.0)
    made = Job(6, 2)
    yield made
    made.close()


def test_a_connection_that_closes_is_a_rank_that_is_lost(job: Job) -> None:
    job.ranks[3].close()
    why = []
    for rank in (job.ranks[1], job.ranks[2], job.ranks[4]):
        said = rank.hear_last()
        assert said is not None
        why.append(said.pop("why", None))
        assert said == {"end": 1}
        rank.close()
    # The process of rank 0 is this hub's too: last, when the others have read it and are gone.
    assert job.ranks[0].hear() == {"ask": "findings"}
    assert select.select([job.ranks[0].socket], [], [], 0.2)[0] == []
    assert job.ranks[5].hear_last() == {"end": 1}
    job.ranks[5].close()
    assert job.ranks[0].hear_last() == {"end": 1}
    (message,) = job.said
    assert message.startswith("rank 3 (host1) was lost: ")
    # The first rank that is left on every other node says it too.
    assert why == [None, message, message]


def test_ranks_that_are_lost_together_are_named_together(job: Job) -> None:
    job.ranks[3].close()
    for rank in (job.ranks[r] for r in (0, 1, 4, 5)):
        while rank.hear() != {"ask": "findings"}:
            pass
        rank.say(findings=[])
    # The kernel takes a moment for each process that it ends.
    time.sleep(0.05)
    job.ranks[2].say(findings=[])
    job.ranks[2].close()
    assert job.ranks[5].hear_last() == {"end": 1}
    for rank in job.ranks:
        rank.close()
    job.hub.join(10)
    assert job.said[0].startswith("ranks 2-3 (host1) were lost, rank 3 first: ")
    assert len(job.said) == 1


def test_a_failure_is_told_with_the_first_finding_of_all_ranks(job: Job) -> None:
    job.ranks[4].end("failed", "RuntimeError: loss is nan")
    for rank in job.ranks:
        said = rank.hear()
        if said is not None and "speaks" in said:
            said = rank.hear()
        assert said == {"ask": "findings"}
    for layer, rank in enumerate(job.ranks, start=1):
        rank.say(findings=[{"iteration": 2, "layer": layer, "text": f"layer {layer}: nan"}])
    message = "rank 4 (host2) failed: RuntimeError: loss is nan\n  rank 0, layer 1: nan"
    assert job.ranks[4].hear() == {"leave": True, "why": message}
    assert job.ranks[5].hear() == {"end": 1}
    assert job.said == [message]


def test_a_rank_that_says_goodbye_is_not_lost(job: Job) -> None:
    job.ranks[4].say(bye=True)
    job.ranks[4].close()
    job.ranks[0].say(bye=True)
    # Rank 0 is done as well: nobody is ended.
    assert job.ranks[5].hear_last() == {"bye": True}
    assert job.said == []


def test_an_error_that_tells_of_a_rank_that_left_is_told_as_that(job: Job) -> None:
    job.ranks[4].say(bye=True)
    job.ranks[4].close()
    time.sleep(0.1)  # another connection
    job.ranks[2].end("followed", "RuntimeError: Connection closed by peer")
    said = job.ranks[2].hear_last()
    assert said is not None
    assert said["leave"]
    assert said["why"].startswith("rank 4 (host2) left with exit code 0 while other ranks ")


def test_each_node_has_a_rank_that_speaks_if_rank_0_is_lost(job: Job) -> None:
    said = {r: job.ranks[r].hear() for r in range(2, 6)}
    assert said == {r: {"speaks": r % 2 == 0} for r in range(2, 6)}
    job.ranks[0].say(bye=True)


def test_all_that_leave_with_a_code_leave(job: Job) -> None:
    for rank in job.ranks:
        rank.end("exit", "exit code 16", 16)
    for rank in job.ranks:
        assert rank.hear_last() == {"leave": True}
    assert job.said == []


def test_a_refusal_ends_the_others_with_the_same_code(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hub.FOLLOW_SECONDS, "refused", 0.3)
    job.ranks[1].end("refused", code=2)
    assert job.ranks[1].hear_last() == {"leave": True}
    assert job.ranks[2].hear_last() == {"end": 2}
    assert job.said == []


def test_strangers_have_no_say(job: Job) -> None:
    stranger = Rank(job.hub, 1, token="wrong")
    assert stranger.hear() is None
    stranger.close()
    with socket.create_connection(("127.0.0.1", job.hub.port)) as other:
        other.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert other.recv(1) == b""
    assert job.said == []
    job.ranks[0].say(bye=True)
    assert job.ranks[2].hear_last() == {"bye": True}


def test_what_a_rank_says_and_is_not_understood_does_not_end_it(job: Job) -> None:
    job.ranks[4].socket.sendall(b'{"position": \n')
    job.ranks[4].say(nothing="known")
    job.ranks[4].say(bye=True)
    time.sleep(0.1)  # another connection
    job.ranks[0].say(bye=True)
    assert job.ranks[4].hear_last() == {"bye": True}
    assert job.said == []


def test_a_thousand_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect, and end soon after one is lost."""
    monkeypatch.setenv("GROUP_RANK", "0")
    job = Job(1000, 8)
    begin = time.monotonic()
    job.ranks[777].close()
    for rank in job.ranks[1:777]:
        said = rank.hear_last()
        assert said is not None
        assert said["end"] == 1
        rank.close()
    assert time.monotonic() - begin < 60
    assert job.said[0].startswith("rank 777 (host97) was lost: ")
    job.close()
