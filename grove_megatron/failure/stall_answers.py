"""Every rank's side of the stall watch: answers where it is, and notices that nobody asks."""

import json
import socket
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from .position import mark, position
from .stall import rank_0_is_silent, seconds_between, states
from .stall_table import UNSEEN, Row


class StallAnswers:
    """Of one rank, for its member thread.

    Args:
        minutes: see :class:`.stall.StallWatch`.
        args: Megatron's, in use.
        rank: this one.
        main_pid, main_host, main_node: of rank 0.
    """

    def __init__(
        self,
        minutes: float,
        args: Namespace,
        *,
        rank: int,
        main_pid: int,
        main_host: str,
        main_node: str,
    ) -> None:
        self._args, self._rank = args, rank
        self._main = (main_pid, main_host, main_node)
        # Rank 0 asks several times in this span.
        self._patience = minutes * 60 + seconds_between(minutes)
        self._between = self._patience
        # It asks nobody before all ranks have come.
        self._asked: float | None = None

    def answer(self, said: dict[str, Any]) -> dict[str, Any] | None:
        """To what rank 0 asks, {} if there is none; None if it does not ask for any of this."""
        answers: dict[str, Callable[[], dict[str, Any]]] = {
            "mark": lambda: {"mark": mark(self._args)},
            "position": lambda: {"position": position(self._args)},
            "states": lambda: {"states": states(said["pids"])},
        }
        answer = answers.get(said.get("ask", ""))
        if answer is None:
            return None
        self._asked, self._between = time.monotonic(), self._patience
        try:
            found = answer()
            json.dumps(found)
        except Exception as error:  # this thread watches for failures too
            return {"position": _unseen(error)} if said["ask"] == "position" else {}
        return found

    def wait(self) -> float | None:
        """Seconds until rank 0 counts as silent; None before it has asked."""
        if self._asked is None:
            return None
        return max(0.01, self._asked + self._between - time.monotonic())

    def of_rank_0(self) -> str:
        """A message, if rank 0 has asked for nothing for too long, else ""."""
        if self._asked is None or time.monotonic() < self._asked + self._between:
            return ""
        silent = time.monotonic() - self._asked
        self._between *= 2
        try:
            here = position(self._args)
        except Exception as error:
            here = _unseen(error)
        mine = Row.of(here, rank=self._rank, host=socket.gethostname(), idle=0.0)
        return rank_0_is_silent(*self._main, silent, mine)


def _unseen(error: Exception) -> dict[str, Any]:
    """In place of a position."""
    return {"waits": [], "silent": f"{UNSEEN}: {type(error).__name__} {error}".strip()}
