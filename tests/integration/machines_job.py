"""Runs on a rank: the preflight of machines, on ranks of one machine that stand for nodes."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ports import free_port

AHEAD_SECONDS = 30.0
LATE_SECONDS = 0.3


def look(
    folder: str,
    argv: list[str],
    per_node: int,
    faults: dict[str, Any],
    more: dict[str, list[str]] | None = None,
) -> None:
    """``grove_megatron.machines`` on nodes of ``per_node`` ranks, each in a folder of its own.

    Args:
        folder: of the test; a path in ``argv`` that is not absolute is another on every node.
        argv: of the job.
        per_node: ranks of a node.
        faults: what to break, by name; see below.
        more: flags of single ranks, by the rank.
    """
    rank = int(os.environ["RANK"])
    node = rank // per_node
    os.environ |= {
        "GROUP_RANK": str(node),
        "LOCAL_RANK": str(rank % per_node),
        "LOCAL_WORLD_SIZE": str(per_node),
    }
    own = Path(folder) / f"node{node}"
    own.mkdir(exist_ok=True)
    os.chdir(own)
    for name, value in faults.items():
        FAULTS[name](node, value)
    from grove_megatron.machines.__main__ import main

    sys.argv = ["machines", *argv, *(more or {}).get(str(rank), [])]
    main()


def _clock(node: int, ahead: int) -> None:
    """The clock of a node is ahead."""
    from grove_megatron.machines import doors

    if node == ahead:
        doors.now = lambda: time.time() + AHEAD_SECONDS


def _wrong(_: int, ranks: list[int]) -> None:
    """A bit of what one rank sends to another is turned on the way, after the first message."""
    from grove_megatron.machines import exchange

    send, sent = exchange.send_receive, [0]

    def send_receive(out: Any, into: Any, other: int) -> None:
        out = out.clone()
        if [int(os.environ["RANK"]), other] == ranks:
            sent[0] += 1
            out[-1] ^= int(sent[0] == 2)
        send(out, into, other)

    exchange.send_receive = send_receive


def _crossed(_: int, ranks: list[int]) -> None:
    """The same in an all-to-all, in the part for the second of its ranks."""
    from grove_megatron.machines import exchange

    exchange_all = exchange.all_to_all

    def all_to_all(out: Any, into: Any, group: Any) -> None:
        out = out.clone()
        if int(os.environ["RANK"]) == ranks[0]:
            out[ranks[1] * len(out) // 4] ^= 1
        exchange_all(out, into, group)

    exchange.all_to_all = all_to_all


def _late(_: int, ranks: list[int]) -> None:
    """What one rank sends to another waits before it goes."""
    from grove_megatron.machines import exchange

    send = exchange.send_receive

    def send_receive(out: Any, into: Any, other: int) -> None:
        if [int(os.environ["RANK"]), other] == ranks:
            time.sleep(LATE_SECONDS)
        send(out, into, other)

    exchange.send_receive = send_receive


def _wall(node: int, behind: int) -> None:
    """Nobody gets in at a node: its port is one that nobody listens at."""
    from grove_megatron.machines import doors

    open_door = doors._door

    @contextmanager
    def closed(word: str) -> Iterator[int]:
        with open_door(word) as port:
            yield free_port() if node == behind else port

    doors._door = closed


FAULTS: dict[str, Callable[[int, Any], None]] = {
    "clock": _clock,
    "wrong": _wrong,
    "crossed": _crossed,
    "late": _late,
    "wall": _wall,
}
