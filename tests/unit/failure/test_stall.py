"""Rank 0's stall watch with ranks that answer as a test says, and what a silent rank 0 leaves."""

import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from typing import Any

import pytest

from grove_megatron.failure import stall, stall_answers
from grove_megatron.failure.stall import StallWatch, seconds_between, states
from grove_megatron.failure.stall_answers import StallAnswers
from grove_megatron.failure.stall_table import Row

MINUTES = 0.01
AT = {
    "iteration": 1,
    "microbatch": None,
    "layer": None,
    "stage": "experts",
    "at": "",
    "waits": [],
    "called": {},
}


class Lines:
    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def send(self, **said: Any) -> None:
        self.said.append(said)


class Peer:
    """A rank; ``mark`` is its answer, None: it gives none."""

    def __init__(self, rank: int, node: str = "0", pid: int = 1) -> None:
        self.lines: Any = Lines()
        self.rank, self.host, self.node, self.pid, self.ended = (
            rank,
            f"host{node}",
            node,
            pid,
            False,
        )
        self.mark: int | None = 0
        self.place = "experts"

    def answer(self, watch: StallWatch) -> None:
        asked, self.lines.said = self.lines.said, []
        for said in asked if self.mark is not None else []:
            answers: dict[str, dict[str, Any]] = {
                "mark": {"mark": [[self.mark], 0, self.place]},
                "position": {"position": AT},
                "states": {"states": dict.fromkeys(said.get("pids", {}), "is stopped")},
            }
            assert watch.heard(self, answers[said["ask"]])


def run(watch: StallWatch, peers: list[Peer], seconds: float, moving: bool = False) -> list[str]:
    said, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        said.append(watch.look(peers))
        for peer in peers:
            if moving and peer.mark is not None:
                peer.mark += 1
            peer.answer(watch)
        time.sleep(0.01)
    return [one for one in said if one]


@pytest.fixture(autouse=True)
def _node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUP_RANK", "0")
    monkeypatch.setattr(stall, "_ANSWER_SECONDS", 0.2)


def test_nothing_is_said_of_a_job_that_gets_on() -> None:
    peers = [Peer(0), Peer(1)]
    assert run(StallWatch(MINUTES), peers, 1.5, moving=True) == []


def test_one_rank_that_gets_on_is_progress() -> None:
    peers = [Peer(0), Peer(1)]
    peers[1].mark = None
    assert run(StallWatch(MINUTES), peers, 1.5, moving=True) == []


def test_a_place_that_comes_again_is_no_progress() -> None:
    watch, peer = StallWatch(MINUTES), Peer(0)
    said = []
    for place in 6 * ["save", "training loop"]:
        peer.place = place
        said += run(watch, [peer], MINUTES * 60 / 4)
    assert "no rank waits for another" in said[0]
    # After a collective it may be there again.
    peer.mark = 1
    assert run(watch, [peer], 0.3) == ["the job goes on: there is progress again"]
    marks = [{"mark": [[1], 0, place]} for place in ("save", "training loop")]
    moved = []
    for mark in (*marks, *marks):
        before = watch._moved
        assert watch.heard(peer, mark)
        moved.append(watch._moved > before)
    assert moved == [True, False, False, False]


def test_bytes_are_progress_though_the_place_is_known() -> None:
    watch, peer = StallWatch(MINUTES), Peer(0)
    for stored in range(8):
        assert watch.heard(peer, {"mark": [[0], stored, "save"]})
        assert watch.look([peer]) == ""
        time.sleep(MINUTES * 60 / 4)


def test_a_job_that_stands_still_says_so_at_doubled_intervals() -> None:
    watch = StallWatch(MINUTES)
    said = run(watch, [Peer(0), Peer(1)], 6 * MINUTES * 60)
    assert len(said) == 3  # after 1, 2 and 4
    assert "no rank waits for another: ranks 0-1 (host0) are in experts\n" in said[0]
    # It goes on, and stands still again.
    peer = Peer(0)
    assert run(watch, [peer], 0.3, moving=True) == ["the job goes on: there is progress again"]
    assert watch.found == ""
    assert len(run(watch, [peer], 1.5 * MINUTES * 60)) == 1


def test_a_rank_of_another_node_is_looked_at_by_its_mate() -> None:
    peers = [Peer(0), Peer(1, "1"), Peer(2, "1", pid=77)]
    peers[2].mark = None
    (said,) = run(StallWatch(MINUTES), peers, 1.5 * MINUTES * 60)
    assert "rank 2 (host1) is stopped\n" in said


def test_a_rank_alone_on_its_node_is_not_seen() -> None:
    peers = [Peer(0), Peer(1, "1")]
    peers[1].mark = None
    (said,) = run(StallWatch(MINUTES), peers, 1.5 * MINUTES * 60)
    assert "rank 1 (host1) does not answer, and no rank of its node can look at it\n" in said


def test_what_the_kernel_says_of_a_process() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        os.kill(sleeper.pid, signal.SIGSTOP)
        os.waitpid(sleeper.pid, os.WUNTRACED)
        assert states({"3": sleeper.pid}) == {
            "3": f"is stopped (SIGSTOP) (process {sleeper.pid})",
        }
    finally:
        sleeper.kill()
        sleeper.wait()
    gone = "does not answer, and its process is not seen from its node"
    assert states({"3": sleeper.pid}) == {"3": gone}


def test_a_rank_0_that_asks_nobody_is_named() -> None:
    answers = StallAnswers(
        MINUTES, Namespace(), rank=1, main_pid=os.getpid(), main_host="a", main_node="0"
    )
    # Before all ranks have come it asks nobody.
    assert answers.wait() is None
    assert answers.of_rank_0() == ""
    assert answers.answer({"ask": "findings"}) is None
    said = answers.answer({"ask": "mark"})
    assert said is not None
    assert len(said["mark"]) == 3
    assert answers.of_rank_0() == ""
    time.sleep(MINUTES * 60 + seconds_between(MINUTES) + 0.05)
    assert answers.of_rank_0().startswith("rank 0 (a) has asked nobody for progress for 1 s: it ")
    assert answers.of_rank_0() == ""


def test_a_rank_that_cannot_be_looked_at_answers_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that answers also watches for failures."""

    def changed(_: Any) -> Any:
        raise TypeError("an attribute has changed")

    answers = StallAnswers(
        MINUTES, Namespace(), rank=1, main_pid=os.getpid(), main_host="a", main_node="0"
    )
    monkeypatch.setattr(stall_answers, "mark", changed)
    monkeypatch.setattr(stall_answers, "position", changed)
    assert answers.answer({"ask": "mark"}) == {}
    assert answers.answer({"ask": "states"}) == {}
    said = answers.answer({"ask": "position"})
    assert said is not None
    row = Row.of(said["position"], rank=1, host="a", idle=0.0)
    assert row.where == "cannot be looked at: TypeError an attribute has changed"
    time.sleep(MINUTES * 60 + seconds_between(MINUTES) + 0.05)
    assert "cannot be looked at: TypeError" in answers.of_rank_0()
    # What no JSON can say.
    monkeypatch.setattr(stall_answers, "position", lambda _: {"layer": {1}})
    said = answers.answer({"ask": "position"})
    assert said is not None
    assert said["position"]["silent"].startswith("cannot be looked at: TypeError")
