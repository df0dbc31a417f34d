"""An exception in a line, with what it does not say of itself."""

import shlex
import shutil
import socket
import traceback
from argparse import Namespace
from typing import Any

from ..checkpoint.layout import is_remote, is_same, iteration_of, read_tracker
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
    saving = any(frame.name in _SAVING for frame in traceback.extract_tb(error.__traceback__))
    said = _of_ranks(error, "writing" if saving else "reading") or _short(error)
    lines = [f"{type(error).__name__}: {said}".removesuffix(": ")]
    if args is not None and saving and (how := what_goes_on(args)):
        lines.append(f"  {_room(args.save)}; {how}")
    return "\n".join(lines)


def what_goes_on(args: Namespace | None) -> str:
    """What is saved of a run that is asked to end, and how to go on; "" if that is not known.

    Args:
        args: Megatron's as they were given, None before they are parsed.
    """
    save = getattr(args, "save", None)
    if args is None or not save or args.skip_train or is_remote(args, save):
        return ""
    last = read_tracker(save)
    if last is None:
        return f"no checkpoint is complete in --save ({save}); the same command begins again"
    changes = [] if is_same(args.load, save) else [f"with --load {shlex.quote(save)}"]
    changes += ["without --finetune"] if args.finetune else []
    command = " ".join(["the same command", " and ".join(changes)]).strip()
    which = last if iteration_of(last) is None else f"iteration {last}"
    return f"the last complete checkpoint in --save ({save}) is {which}; {command} goes on from it"


def _short(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return f"{said[:_LONGEST]} ..." if len(said) > _LONGEST else said


def _failures(error: BaseException) -> dict[int, Any] | None:
    """Of a CheckpointException: exception and stack by rank, {} on all ranks but the first."""
    failures = getattr(error, "failures", None)
    return failures if isinstance(failures, dict) else None


def _of_ranks(error: BaseException, doing: str) -> str:
    """``OSError: no space on ranks 0-3``: what ranks failed with, in place of their stacks."""
    ranks: dict[str, list[int]] = {}
    for rank, (failure, *_) in (_failures(error) or {}).items():
        ranks.setdefault(f"{type(failure).__name__}: {_short(failure)}", []).append(rank)
    return "; ".join(f"{said} ({doing} on {ranks_named(of)})" for said, of in ranks.items())


def _room(save: str) -> str:
    where = f"--save ({save}) on {socket.gethostname()}"
    try:
        usage = shutil.disk_usage(save)
        room = f"has {usage.free} of {usage.total} bytes free"
    except OSError as error:
        room = f"cannot be asked for its free bytes: {error}"
    return f"{where} {room}; this checkpoint is not complete. If it is full, make room"
