"""A job that stands still: rank 0 asks every rank where it is, and says who holds it up.

``--grove-stall-minutes``. A stopped process, a loop that does not end or a collective that one
rank has not called closes no connection; until a collective times out the job says nothing. Every
rank is asked a few times in that span whether it has got on (:mod:`.position`). The job goes on: it
may be slow and not lost, and ``--distributed-timeout-minutes`` ends it where a collective waits.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .job_store import node
from .lines import Lines
from .message import Ending
from .stall_table import Row, culprit, table

_MOST_SECONDS_BETWEEN = 15.0
_ANSWER_SECONDS = 2.0


class Peer(Protocol):
    """A rank as the hub has it."""

    lines: Lines
    rank: int
    host: str
    node: str
    pid: int
    ended: bool


@dataclass
class _Marks:
    """What a rank has been seen to do, as :func:`.position.mark` gives it.

    Args:
        counted: of the last mark.
        stored: of the last mark that had any.
        at: when it was last seen to get on.
        places: all since ``counted`` changed: one that comes again is no progress, as of a call
            that fails and is tried again without end.
    """

    counted: list[int]
    stored: int
    at: float
    places: set[str] = field(default_factory=set)

    def move(self, counted: list[int], stored: int, place: str, now: float) -> bool:
        """Take another mark; has the rank got on?"""
        if moved := counted != self.counted:
            self.places.clear()
        moved = moved or place not in self.places or stored not in (0, self.stored)
        self.counted, self.stored = counted, stored or self.stored
        self.places.add(place)
        self.at = now if moved else self.at
        return moved


class StallWatch:
    """Rank 0's; its hub calls :meth:`look` again and again.

    Args:
        minutes: without progress on any rank until the first message; the next come after twice as
            long each.
    """

    def __init__(self, minutes: float) -> None:
        self._minutes = minutes
        self._patience = minutes * 60
        self.seconds_between = seconds_between(minutes)
        now = time.monotonic()
        self._next = self._moved = now
        self._marks: dict[int, _Marks] = {}
        self._rows: dict[int, Row] = {}
        self._states: dict[int, str] = {}
        self._asked: float | None = None
        self._asked_states: float | None = None
        self.found = ""
        """Who holds the job up, as long as it stands still."""
        self._found_at = now

    def heard(self, peer: Peer, said: dict[str, Any]) -> bool:
        """Take an answer; False if it is none."""
        now = time.monotonic()
        if "mark" in said:
            counted, stored, place = said["mark"]
            marks = self._marks.setdefault(peer.rank, _Marks([], 0, now))
            if marks.move(counted, stored, place, now):
                self._moved = now
        elif "position" in said:
            self._rows[peer.rank] = Row.of(
                said["position"], rank=peer.rank, host=peer.host, idle=self._idle(peer, now)
            )
        elif "states" in said:
            self._states |= {int(rank): state for rank, state in said["states"].items()}
        else:
            return False
        return True

    def look(self, peers: Sequence[Peer], left: Sequence[Ending] = ()) -> str:
        """Ask what is due; a message, or "".

        Args:
            peers: ranks that are connected.
            left: those that are done.
        """
        now = time.monotonic()
        peers = [peer for peer in peers if not peer.ended]
        if self.found and self._asked is None and self._moved > self._found_at:
            self.found, self._patience = "", self._minutes * 60
            return "the job goes on: there is progress again"
        if self._asked is not None and self._moved > self._asked:
            self._asked = None  # it has got on in the meantime
        if self._asked is not None:
            return self._gather(peers, left, now)
        if now >= self._next:
            self._next = now + self.seconds_between
            for peer in peers:
                peer.lines.send(ask="mark")
        if now - self._moved >= self._patience:
            self._asked = now
            self._rows, self._states, self._asked_states = {}, {}, None
            for peer in peers:
                peer.lines.send(ask="position")
        return ""

    def wait(self) -> float:
        """Seconds until the next look."""
        if self._asked is not None:
            return 0.05
        due = min(self._next, self._moved + self._patience)
        return max(0.0, due - time.monotonic())

    def _gather(self, peers: Sequence[Peer], left: Sequence[Ending], now: float) -> str:
        assert self._asked is not None
        silent = [peer for peer in peers if peer.rank not in self._rows]
        if silent and now - self._asked < _ANSWER_SECONDS:
            return ""
        if silent and self._asked_states is None:
            self._asked_states = now
            self._ask_mates(silent, peers)
        missing = [peer for peer in silent if peer.rank not in self._states]
        mates = {peer.node for peer in peers if peer not in silent} | {node()}
        if any(peer.node in mates for peer in missing) and (
            now - (self._asked_states or now) < _ANSWER_SECONDS
        ):
            return ""
        self._asked = None
        rows = [self._row(peer, now) for peer in peers]
        rows += [Row(rank=one.rank, host=one.host, idle=0.0, left=True) for one in left]
        rows.sort(key=lambda row: row.rank)
        self.found, self._found_at = culprit(rows), now
        stood = now - self._moved
        self._patience *= 2
        return (
            f"no progress on any rank for {stood:.0f} s (--grove-stall-minutes {self._minutes:g}): "
            f"{self.found}\n" + "".join(f"  {line}\n" for line in table(rows)) + "  the job goes on"
        )

    def _ask_mates(self, silent: Sequence[Peer], peers: Sequence[Peer]) -> None:
        """What /proc says of those that do not answer, on their own nodes."""
        for there in {peer.node for peer in silent}:
            pids = {str(peer.rank): peer.pid for peer in silent if peer.node == there}
            if there == node():
                self._states |= {int(rank): state for rank, state in states(pids).items()}
                continue
            mate = next((p for p in peers if p.node == there and p not in silent), None)
            if mate is not None:
                mate.lines.send(ask="states", pids=pids)

    def _row(self, peer: Peer, now: float) -> Row:
        if peer.rank in self._rows:
            return self._rows[peer.rank]
        state = self._states.get(
            peer.rank, "does not answer, and no rank of its node can look at it"
        )
        return Row(rank=peer.rank, host=peer.host, idle=self._idle(peer, now), silent=state)

    def _idle(self, peer: Peer, now: float) -> float:
        seen = self._marks.get(peer.rank)
        return now - (self._moved if seen is None else seen.at)


def seconds_between(minutes: float) -> float:
    """How often ranks are asked whether they get on."""
    return min(minutes * 60 / 4, _MOST_SECONDS_BETWEEN)


def states(pids: dict[str, int]) -> dict[str, str]:
    """What the kernel says of processes of this machine that do not answer, by rank.

    Args:
        pids: process numbers by rank.
    """
    return {rank: _state(pid) for rank, pid in pids.items()}


_STATES = {
    "T": "is stopped (SIGSTOP)",
    "t": "is stopped by a debugger",
    "D": "does not answer: it waits for a device or a disk, in the kernel",
    "R": "does not answer: it runs, and keeps the Python interpreter to itself",
    "S": "does not answer: it sleeps, and keeps the Python interpreter to itself",
    "Z": "has ended",
}


def _state(pid: int) -> str:
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "does not answer, and its process is not seen from its node"
    what = _STATES.get(letter, f"does not answer: its state is {letter}")
    return f"{what} (process {pid})"


def rank_0_is_silent(pid: int, host: str, of_node: str, seconds: float, mine: Row) -> str:
    """The message of the rank that speaks where the hub asks nothing any more.

    Args:
        pid, host, of_node: of rank 0.
        seconds: since it last asked.
        mine: of the rank that speaks.
    """
    here = of_node == node()
    state = _state(pid) if here else f"does not answer rank {mine.rank}, on another node"
    rows = [Row(rank=0, host=host, idle=seconds, silent=state), mine]
    return (
        f"rank 0 ({host}) has asked nobody for progress for {seconds:.0f} s: it {state}\n"
        + "".join(f"  {line}\n" for line in table(rows))
        + "  the job goes on; the other ranks cannot be asked while rank 0 is silent"
    )
