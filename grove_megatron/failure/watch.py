"""A job of several ranks that fails ends on every rank, within seconds, with one message.

Collectives wait minutes for a rank that is gone (10 by default), and say nothing of why. So every
rank holds one TCP connection to rank 0 (:mod:`.hub`, :mod:`.member`): an exception
is sent over it before the rank unwinds, and a connection that closes without a word is a rank that
was killed. Rank 0 prints one message, has a rank of every other node print it too, and tells all to
end; if rank 0 itself is lost, a rank of every node says so. It costs nothing while nothing happens.
"""

import contextlib
import copy
import faulthandler
import json
import os
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

from . import job_store
from .hub import Hub
from .member import Findings, Member, end_process
from .message import (
    EXIT,
    FAILED,
    FOLLOWED,
    INTERRUPTED,
    LEFT,
    REFUSED,
    Ending,
    Finding,
    message,
)
from .position import record_collectives
from .stall_answers import StallAnswers
from .text import describe, kind_of, what_goes_on

_CONNECT_SECONDS = 20.0


class _Watch:
    """What this process has of the watch."""

    def __init__(self) -> None:
        self.active = False  # inside of watched()
        self.hub: Hub | None = None
        self.member: Member | None = None
        self.args: Namespace | None = None
        self.findings: Findings | None = None


_watch = _Watch()


@contextmanager
def watched() -> Iterator[None]:
    """Watch over the block once it has called :func:`begin`; report how it ends if it ends badly.

    Exceptions and exit codes are what they would be without, unless another rank's ending is the
    reason for this one's: then this rank ends with 1, without a traceback.
    """
    global _watch
    _watch = _Watch()
    _watch.active = True
    crashes = not faulthandler.is_enabled()
    if crashes:
        # A crash is a lost rank to the others; its own log gets the line of Python it came from.
        faulthandler.enable(all_threads=False)
    try:
        yield
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if code:
            _end(REFUSED if code == 2 else EXIT, f"exit code {code}", code)
        raise
    except KeyboardInterrupt:
        _interrupted(what_goes_on(_watch.args))
    except BaseException as error:
        _end(kind_of(error), describe(error, _watch.args), 1)
        raise
    finally:
        _stop()
        if crashes:
            faulthandler.disable()


@contextmanager
def interruptible() -> Iterator[None]:
    """End the block with a line on Ctrl-C, not with a traceback of what it was about to import."""
    try:
        yield
    except KeyboardInterrupt:
        _interrupted("")


def _interrupted(saved: str) -> NoReturn:
    code = 128 + signal.SIGINT
    if _watch.member is not None or job_store.world()[0] == 0:
        _end(INTERRUPTED, saved, code)
    raise SystemExit(code) from None


def begin(args: Namespace) -> None:
    """Connect this rank to the others; every rank must call, and rank 0 is waited for.

    Nothing is connected outside of :func:`watched`, where there is one rank and no
    ``--grove-stall-minutes``, where something else restarts
    ranks inside their processes (``--inprocess-restart``), or with ``--grove-failure-watch off``.

    Args:
        args: Megatron's, parsed.

    Raises:
        ValueError: rank 0 cannot be reached.
    """
    # As they were given: Megatron sets --finetune itself when it begins with another checkpoint.
    _watch.args = copy.copy(args)
    rank, world_size = job_store.world()
    stall_minutes: float | None = getattr(args, "grove_stall_minutes", None)
    alone = world_size == 1 and stall_minutes is not None
    if not _watch.active or _watch.member is not None or not (job_store.has_store() or alone):
        return
    if args.fake_process_group or args.inprocess_restart or args.grove_failure_watch == "off":
        return
    if stall_minutes is not None:
        record_collectives()
    said = _meet(args, rank, world_size, stall_minutes)
    stall = None
    if stall_minutes is not None:
        stall = StallAnswers(
            stall_minutes,
            args,
            rank=rank,
            main_pid=said["pid"],
            main_host=said["host"],
            main_node=said["node"],
        )
    member = _watch.member = Member(
        _connect(said["port"]),
        said["token"],
        rank=rank,
        world_size=world_size,
        main_host=said["host"],
        findings=_findings,
        saved=lambda: what_goes_on(_watch.args),
        report=_report,
        stall=stall,
    )
    member.start()
    _close_in_children()


def _meet(
    args: Namespace, rank: int, world_size: int, stall_minutes: float | None
) -> dict[str, Any]:
    """What every rank has to know of rank 0's hub, which is made here."""
    timeout = timedelta(minutes=args.distributed_timeout_minutes)
    # A job of one rank has no store, and asks nobody.
    store = job_store.job_store(timeout) if world_size > 1 else None
    address = job_store.key("failure_watch")
    said = ""
    if rank == 0:
        hub = _watch.hub = Hub(world_size, _report, stall_minutes=stall_minutes)
        hub.start()
        said = json.dumps(
            {
                "port": hub.port,
                "token": hub.token,
                "host": socket.gethostname(),
                "node": job_store.node(),
                "pid": os.getpid(),
            }
        )
        if store is not None:
            store.set(address, said)
    if store is not None:
        store.wait([address], timeout)
        said = store.get(address).decode()
    met: dict[str, Any] = json.loads(said)
    return met


def look_for(findings: Findings) -> None:
    """Have ``findings`` asked, in a thread, what this rank has found when the job fails."""
    _watch.findings = findings


def _findings() -> list[Finding]:
    # What has failed may be the device; the message matters more.
    with contextlib.suppress(Exception):
        return _watch.findings() if _watch.findings else []
    return []


def _connect(port: int) -> socket.socket:
    host = os.environ["MASTER_ADDR"]
    try:
        return socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
    except OSError as error:
        raise ValueError(
            f"MASTER_ADDR ({host}), port ({port}) cannot be reached from {socket.gethostname()} "
            f"({error}), where rank 0 watches for failures; allow connections between the nodes on "
            "all ports, as NCCL and gloo need it, or pass --grove-failure-watch off"
        ) from error


def _end(kind: str, text: str, code: int) -> None:
    """Have rank 0 report this ending, or do so here if there is no rank 0 to do it."""
    if _watch.member is not None and _watch.member.end(kind, text, code):
        return
    rank, world_size = job_store.world()
    ending = Ending(rank=rank, host=socket.gethostname(), kind=kind, text=text, code=code)
    alone = world_size if _watch.member is not None else 1
    endings = [ending]
    if _watch.member is not None and _watch.member.rank_0_left and kind == FOLLOWED:
        endings.append(Ending(rank=0, host=_watch.member.main_host, kind=LEFT, code=0))
    if said := message(endings, _findings(), alone):
        _report(said)


def fail(text: str) -> None:
    """End the job with the message ``text``, in any thread, whatever the main one waits for."""
    _end(FAILED, text, 1)
    end_process(1)


def _stop() -> None:
    if _watch.member is not None:
        _watch.member.leave()
    if _watch.hub is not None:
        _watch.hub.join(5.0)
    _watch.member = _watch.hub = None
    _watch.active = False


def _report(said: str) -> None:
    sys.stdout.flush()
    # One write: other processes print to the same place.
    sys.stderr.write(f"\ngrove_megatron: {said}\n")
    sys.stderr.flush()


def _close_in_children() -> None:
    """Have forked children (data loaders, writers of checkpoints) let go of the connections.

    They would keep them open after the rank has been killed, and SIGTERM would not end them.
    """
    global _closes_in_children
    if not _closes_in_children:
        os.register_at_fork(after_in_child=_close)
    _closes_in_children = True


_closes_in_children = False


def _close() -> None:
    if _watch.member is not None:
        _watch.member.close()
    if _watch.hub is not None:
        _watch.hub.close()
    _watch.member = _watch.hub = None
