"""Every rank's side of the failure watch: says how this rank ends, and ends it when it has to."""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from .job_store import node
from .lines import Lines
from .message import INTERRUPTED, LOST, SIGTERM, Ending, Finding, message
from .stall_answers import StallAnswers
from .termination import Termination

_ANSWER_SECONDS = 30.0
"""For rank 0's answer to an ending; it may wait as long for the ranks that belong to it."""
_LEAVE_SECONDS = 5.0
_SEND_SECONDS = 2.0
_FINDINGS_SECONDS = 1.5
_SPEAKER_SECONDS = 1.0

Findings = Callable[[], list[Finding]]


class Member(threading.Thread):
    """Holds the connection to rank 0.

    Args:
        connection: to rank 0's hub.
        token: of the hub.
        rank: this rank.
        world_size: ranks of the job.
        main_host: that of rank 0.
        findings: what this rank has found; may wait for a device, so it gets a thread of its own.
        saved: what to say of checkpoints when the job is asked to end.
        report: prints a message.
        stall: where this rank is, for rank 0's stall watch; None without one.
    """

    def __init__(
        self,
        connection: socket.socket,
        token: str,
        *,
        rank: int,
        world_size: int,
        main_host: str,
        findings: Findings,
        saved: Callable[[], str],
        report: Callable[[str], None],
        stall: StallAnswers | None = None,
    ) -> None:
        super().__init__(name="grove failure watch", daemon=True)
        self.lines = Lines(connection, patience=_SEND_SECONDS)
        self._rank, self._world_size, self.main_host = rank, world_size, main_host
        self._findings, self._saved, self._report = findings, saved, report
        # Before all ranks have come, who knows.
        self._speaks = rank == 1
        self._stall = stall
        self._dismissed = threading.Event()
        self._leaving = self._alone = False
        self._terminated_at: float | None = None
        self._code = 1
        self.termination = Termination()
        self.lines.send(
            token=token, rank=rank, host=socket.gethostname(), node=node(), pid=os.getpid()
        )

    @property
    def rank_0_left(self) -> bool:
        """Has rank 0 said that it is done, so that nobody watches any more?"""
        return self._alone

    # ------------------------------------------------------------------------- the main thread's

    def end(self, kind: str, text: str, code: int) -> bool:
        """Say how this rank ends and wait until rank 0 has told everybody why.

        Does not return where another rank's ending explains this one.

        Returns:
            whether rank 0 has taken it; else nobody has printed a message.
        """
        self.lines.send(kind=kind, text=text, code=code)
        return self._dismissed.wait(_ANSWER_SECONDS) and not self._alone

    def leave(self) -> None:
        """Say that this rank is done, and stop watching."""
        self._leaving = True
        self.lines.send(bye=True)
        if self._rank:
            # Rank 0's connections close when the others have heard of it.
            with contextlib.suppress(OSError):
                self.lines.connection.shutdown(socket.SHUT_WR)
        self.join(_LEAVE_SECONDS)
        self.close()

    def close(self) -> None:
        """Also in a forked child: the connection would outlive this process."""
        self.lines.close()
        self.termination.undo()

    # ----------------------------------------------------------------------------- the thread's

    def run(self) -> None:
        """Until rank 0 dismisses this rank, or is lost."""
        while True:
            readable, _, _ = select.select(
                [self.lines.connection, self.termination.reader], [], [], self._patience()
            )
            asked = self.termination.asked() if self.termination.reader in readable else None
            # torchrun sends SIGTERM after Ctrl-C to what has not ended by then.
            if asked is not None and self._terminated_at is None:
                self._terminated_at = time.monotonic()
                self._code = 128 + asked  # what a shell makes of it
                kind = INTERRUPTED if asked == signal.SIGINT else SIGTERM
                self.lines.send(kind=kind, text=self._saved(), code=self._code)
            if self._terminated_at is not None and self._patience() == 0:
                end_process(self._code)
            if self.lines.connection in readable:
                heard = self.lines.receive()
                if heard is None:
                    self._lose_rank_0()
                    return
                for said in heard:
                    if self._hear(said):
                        return

            if self._stall is not None and self._speaks and self._rank:
                said_of_0 = self._stall.of_rank_0()
                if said_of_0:
                    self._report(said_of_0)

    def _patience(self) -> float | None:
        if self._terminated_at is None:
            return None if self._stall is None else self._stall.wait()
        return max(0.0, self._terminated_at + 3.0 - time.monotonic())

    def _hear(self, said: dict[str, Any]) -> bool:
        """Do as rank 0 says; True if it was the last thing."""
        if not said:
            return False
        if "why" in said:
            self._report(said["why"])
        if "speaks" in said:
            self._speaks = said["speaks"]
        elif self._stall is not None and (answer := self._stall.answer(said)) is not None:
            if answer:
                self.lines.send(**answer)
        elif "ask" in said:
            found = [
                {"iteration": f.iteration, "layer": f.layer, "text": f.text} for f in self._look()
            ]
            self.lines.send(findings=found)
        elif "end" in said:
            end_process(said["end"])
        elif "leave" in said and self._terminated_at is not None:
            end_process(self._code)
        else:
            self._leaving = True
            self._alone = "bye" in said
            self._dismissed.set()
            return True
        return False

    def _look(self) -> list[Finding]:
        found: list[Finding] = []
        thread = threading.Thread(target=lambda: found.extend(self._findings()), daemon=True)
        thread.start()
        thread.join(_FINDINGS_SECONDS)
        return list(found)

    def _lose_rank_0(self) -> None:
        if self._leaving:
            self._dismissed.set()
            return
        if self._speaks:
            lost = Ending(rank=0, host=self.main_host, kind=LOST)
            self._report(message([lost], self._look(), self._world_size))
        else:
            time.sleep(_SPEAKER_SECONDS)
        end_process(1)


last_acts: list[Callable[[], None]] = []
"""What :func:`end_process` does first, as no ``finally`` will be reached."""


def end_process(code: int) -> None:
    """End this process whatever its main thread waits for; does not return."""
    # That thread may hold the locks of the streams.
    finishing = threading.Thread(target=_finish, daemon=True)
    finishing.start()
    finishing.join(0.5)
    os._exit(code)


def _finish() -> None:
    for act in last_acts:
        with contextlib.suppress(Exception):
            act()
    sys.stdout.flush()
    sys.stderr.flush()
