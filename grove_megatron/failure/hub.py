"""Rank 0's side of the failure watch: knows of every rank, decides why a job ends, and ends it."""

import resource
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from .job_store import node
from .lines import Lines
from .message import (
    EXIT,
    FAILED,
    FOLLOWED,
    INTERRUPTED,
    LEFT,
    LOST,
    REFUSED,
    SIGTERM,
    Ending,
    Finding,
    cause,
    message,
)
from .stall import StallWatch

# From the first ending on: for others that belong to it, and for the findings of all ranks.
_AT_LEAST, _AT_MOST = 0.2, 2.0
# A rank that is lost makes others abort: NCCL's own watch does it, after less than a second.
_AT_MOST_LOST = 0.5
# They go by themselves, with their own traceback or exit code.
_LEAVING = (INTERRUPTED, EXIT, SIGTERM, REFUSED)
FOLLOW_SECONDS = {EXIT: 20.0, REFUSED: 3.0}
"""How long ranks may go on when others have left with an exit code; a refusal has waited before."""


class _Peer:
    """A rank as rank 0 sees it; ``rank`` is -1 until it has said who it is."""

    def __init__(self, connection: socket.socket) -> None:
        self.lines = Lines(connection)
        self.rank, self.host, self.node, self.pid = -1, "", "", 0
        self.ended = self.answered = False


class Hub(threading.Thread):
    """Listens on a port of its own; every rank, rank 0 too, has a connection to it.

    Args:
        world_size: ranks of the job.
        report: prints the message.
        stall_minutes: say where the ranks are after so long without progress; None: never.
    """

    def __init__(
        self,
        world_size: int,
        report: Callable[[str], None],
        *,
        stall_minutes: float | None = None,
    ) -> None:
        super().__init__(name="grove failure hub", daemon=True)
        self._world_size, self._report = world_size, report
        _allow_open_files(world_size)
        dual = socket.has_dualstack_ipv6()
        self._server = socket.create_server(
            ("", 0),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
            backlog=min(world_size, 4096),
        )
        self._server.setblocking(False)
        self.port: int = self._server.getsockname()[1]
        # Whoever else connects to the port has no say.
        self.token = secrets.token_hex(16)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._peers: list[_Peer] = []
        self._joined = 0
        self._endings: list[Ending] = []
        self._left: list[Ending] = []
        self._findings: list[Finding] = []
        self._since = 0.0
        self._done = False
        self._stall_minutes = stall_minutes
        self._stall: StallWatch | None = None

    def run(self) -> None:
        """Until rank 0 leaves, or the job is ended."""
        while not self._done:
            for key, _ in self._selector.select(self._patience()):
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)
            if self._endings and not self._done and self._know_enough():
                self._end()
            if self._stall is not None and not (self._endings or self._done):
                self._say(self._stall.look(self._known(), self._left))
        self.close()

    def _say(self, said: str) -> None:
        if said:
            self._report(said)

    def _patience(self) -> float | None:
        if self._endings:
            return 0.05
        return None if self._stall is None else self._stall.wait()

    def close(self) -> None:
        """Close every connection; also in a forked child, which must not keep them open."""
        for peer in self._peers:
            peer.lines.close()
        self._server.close()
        self._selector.close()

    # ---------------------------------------------------------------------------- what ranks say

    def _accept(self) -> None:
        try:
            connection, _ = self._server.accept()
        except OSError:
            return  # it has gone again
        peer = _Peer(connection)
        self._peers.append(peer)
        self._selector.register(connection, selectors.EVENT_READ, peer)

    def _read(self, peer: _Peer) -> None:
        heard = peer.lines.receive()
        if heard is None:
            self._forget(peer)
            if peer.rank >= 0 and not peer.ended:
                self._ended(peer, LOST)
            return
        for said in heard:
            try:
                self._hear(peer, said)
            except (AttributeError, KeyError, TypeError, ValueError):
                # What a rank says and is not understood is passed over: its connection counts.
                if peer.rank < 0:
                    self._forget(peer)  # not one of ours
                    return

    def _hear(self, peer: _Peer, said: dict[str, Any]) -> None:
        if peer.rank < 0:
            if said["token"] != self.token:
                raise KeyError("token")
            peer.rank = int(said["rank"])
            peer.host, peer.node = str(said["host"]), str(said["node"])
            peer.pid = int(said["pid"])
            self._joined += 1
            if self._joined == self._world_size:
                self._choose_speakers()
                if self._stall_minutes is not None:
                    self._stall = StallWatch(self._stall_minutes)
            if self._endings:
                peer.lines.send(ask="findings")
        elif self._stall is not None and self._stall.heard(peer, said):
            pass
        elif "findings" in said:
            peer.answered = True
            self._findings += [Finding(rank=peer.rank, **found) for found in said["findings"]]
        elif "bye" in said:
            if not peer.ended:
                self._left.append(Ending(rank=peer.rank, host=peer.host, kind=LEFT, code=0))
            peer.ended = peer.answered = True
            if peer.rank == 0:
                self._leave()
        else:
            self._ended(peer, said["kind"], said["text"], said["code"])

    def _ended(self, peer: _Peer, kind: str, text: str = "", code: int = 1) -> None:
        if not self._endings:
            self._since = time.monotonic()
            for other in self._known():
                other.lines.send(ask="findings")
        peer.ended = True
        self._endings.append(
            Ending(rank=peer.rank, host=peer.host, kind=kind, text=text, code=code)
        )

    def _known(self) -> list[_Peer]:
        return sorted((p for p in self._peers if p.rank >= 0), key=lambda peer: peer.rank)

    def _forget(self, peer: _Peer) -> None:
        self._selector.unregister(peer.lines.connection)
        peer.lines.close()
        self._peers.remove(peer)

    def _choose_speakers(self) -> None:
        """Who speaks if rank 0 is lost, perhaps with its machine: a rank of every node."""
        others = [peer for peer in self._known() if peer.rank]
        speakers = _first_of_nodes(others)
        for peer in others:
            peer.lines.send(speaks=peer.rank in speakers)

    # ------------------------------------------------------------------------------- what follows

    def _know_enough(self) -> bool:
        if self._joined == self._world_size and all(peer.ended for peer in self._known()):
            return all(peer.answered for peer in self._known()) or self._waited() > _AT_MOST
        first = cause(self._endings).kind
        if first in FOLLOW_SECONDS:
            return self._waited() > FOLLOW_SECONDS[first]
        answered = all(peer.answered for peer in self._known())
        at_most = _AT_MOST_LOST if first == LOST else _AT_MOST
        return self._waited() > (_AT_LEAST if answered else at_most)

    def _waited(self) -> float:
        return time.monotonic() - self._since

    def _end(self) -> None:
        """Print why, then end every rank, rank 0 last."""
        said = message(self._explained(), self._findings, self._world_size)
        if said and self._stall is not None and self._stall.found:
            said += f"\n  before that, {self._stall.found}"
        self._say(said)
        first = cause(self._endings)
        leaving = {e.rank for e in self._endings if e.kind in _LEAVING}
        leaving |= {first.rank} if first.kind in (FAILED, FOLLOWED) else set()
        code = 2 if first.kind == REFUSED else 1
        others = [peer for peer in self._known() if peer.rank]
        # The log of every node tells it, in the words of the first rank that is left there.
        speakers = _first_of_nodes([peer for peer in others if peer.node != node()])
        for peer in others:
            self._dismiss(peer, leaving, code, said if peer.rank in speakers else "")
        # This process must not end before the others have read that.
        self._wait_for(others)
        for peer in self._known():
            if not peer.rank:
                self._dismiss(peer, leaving, code, "")
        self._done = True

    def _explained(self) -> list[Ending]:
        """An error that tells of a connection that has closed is of a rank that has left."""
        followed = cause(self._endings).kind == FOLLOWED
        return [*self._endings, *self._left] if followed else self._endings

    def _dismiss(self, peer: _Peer, leaving: set[int], code: int, said: str) -> None:
        why = {"why": said} if said else {}
        if peer.rank in leaving:
            peer.lines.send(leave=True, **why)
        else:
            peer.lines.send(end=code, **why)

    def _wait_for(self, peers: list[_Peer]) -> None:
        deadline = time.monotonic() + _AT_MOST
        while any(p in self._peers for p in peers) and time.monotonic() < deadline:
            for key, _ in self._selector.select(0.05):
                peer = key.data
                if peer is not None and peer.lines.receive() is None:
                    self._forget(peer)

    def _leave(self) -> None:
        """Rank 0 is done; nobody watches over those that still run."""
        if self._endings:
            self._end()
            return
        for peer in self._known():
            peer.lines.send(bye=True)
        self._done = True


def _first_of_nodes(peers: Sequence[_Peer]) -> set[int]:
    """A rank of every node, in the order of ranks; those whose connection has closed are not given.

    Args:
        peers: in the order of their ranks.
    """
    first: dict[str, int] = {}
    for peer in peers:
        first.setdefault(peer.node, peer.rank)
    return {*first.values()}


def _allow_open_files(world_size: int) -> None:
    """A connection a rank: the usual soft limit of 1024 open files is too small for 1000 ranks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = world_size + 1024
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
