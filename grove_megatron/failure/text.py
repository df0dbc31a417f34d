"""An exception in a line, with what it does not say of itself."""

import os
import shlex
import shutil
import socket
import traceback
from argparse import Namespace
from pathlib import Path
from typing import Any

from ..checkpoint.layout import TRACKER
from .message import FAILED, FOLLOWED, ranks_named

_LONGEST = 600
_SAVING = ("save_checkpoint", "maybe_finalize_async_save")
"""Megatron's functions that write a checkpoint, or wait for one that is being written."""
_OF_A_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def kind_of(error: BaseException) -> str:
    """``failed``, or ``followed``: an error that only tells that another rank has failed."""
    if any(text in str(error) for text in _OF_A_PEER) or _failures(error) == {}:
        return FOLLOWED
    return FAILED


def describe(error: BaseException, args: Namespace | None = None) -> str:
    """Type and message; and what room there is at ``--save``, if it failed while it saved."""
    lines = [f"{type(error).__name__}: {_of_ranks(error) or _short(error)}".removesuffix(": ")]
    save = getattr(args, "save", None)
    saving = any(frame.name in _SAVING for frame in traceback.extract_tb(error.__traceback__))
    if save is not None and saving:
        lines.append(f"  {_room(save)}")
    return "\n".join(lines)


def what_goes_on(args: Namespace | None) -> str:
    """What is saved of a run that is asked to end, and how to go on; "" if it does not save.

    Args:
        args: Megatron's, None before they are parsed.
    """
    save = getattr(args, "save", None)
    if args is None or not save or args.skip_train:
        return ""
    try:
        last = (Path(save) / TRACKER).read_text().strip()
    except OSError:
        return f"no checkpoint is complete in --save ({save}); the same command begins again"
    load = args.load is not None and os.path.realpath(args.load) == os.path.realpath(save)
    command = "the same command" if load else f"the same command with --load {shlex.quote(save)}"
    which = f"iteration {last}" if last.isdecimal() else last
    return f"the last complete checkpoint in --save ({save}) is {which}; {command} goes on from it"


def _short(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return f"{said[:_LONGEST]} ..." if len(said) > _LONGEST else said


def _failures(error: BaseException) -> dict[int, Any] | None:
    """Of a CheckpointException: exception and stack by rank, {} on all ranks but the first."""
    failures = getattr(error, "failures", None)
    return failures if isinstance(failures, dict) else None


def _of_ranks(error: BaseException) -> str:
    """``OSError: no space on ranks 0-3``: what ranks failed with, in place of their stacks."""
    ranks: dict[str, list[int]] = {}
    for rank, (failure, *_) in (_failures(error) or {}).items():
        ranks.setdefault(f"{type(failure).__name__}: {_short(failure)}", []).append(rank)
    return "; ".join(f"{said} (writing on {ranks_named(of)})" for said, of in ranks.items())


def _room(save: str) -> str:
    where = f"--save ({save}) on {socket.gethostname()}"
    try:
        usage = shutil.disk_usage(save)
        room = f"has {usage.free} of {usage.total} bytes free"
    except OSError as error:
        room = f"cannot be asked for its free bytes: {error}"
    return (
        f"{where} {room}; this checkpoint is not complete, {_complete(save)}. If it is full, make "
        "room and start the same command again"
    )


def _complete(save: str) -> str:
    try:
        return f"the last complete one is {(Path(save) / TRACKER).read_text().strip()}"
    except OSError:
        return "and there is none before it"
