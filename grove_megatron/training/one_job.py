"""A job refuses to write where another still does: checkpoints, and the record of metrics."""

import contextlib
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from ..checkpoint.layout import is_remote
from ..checks.flags import flag_of
from ..checks.problem import Problem
from ..failure.member import last_acts
from ..failure.watch import fail
from .folder_lock import GONE_SECONDS, FolderLocks, Owner, in_use, look
from .of_ranks import problems_of_rank_0

_FLAGS = ("save", "non_persistent_global_ckpt_dir", "grove_metrics_dir")

_locks: FolderLocks | None = None


@contextmanager
def writing_alone() -> Iterator[None]:
    """What :func:`claim` has got is given back at the end of the block, whatever its way."""
    global _locks
    _locks = FolderLocks(fail)
    last_acts.append(_locks.release)
    try:
        yield
    finally:
        # In this order: a thread that ends the process waits for what is among its last acts.
        _locks.release()
        last_acts.remove(_locks.release)
        _locks = None


def claim(args: Namespace, problems: list[Problem]) -> list[Problem]:
    """Have this job alone write into its folders; every rank must call, and hears the same.

    Nothing is created where the job will be refused anyway; that a folder is in use is said.

    Args:
        args: Megatron's, parsed.
        problems: found before.

    Returns:
        Folders that another job writes into.
    """
    folders = _folders(args)
    if not folders or args.fake_process_group or args.inprocess_restart:
        return []

    def ask() -> list[Problem]:
        if problems or _locks is None:
            return lock_problems(args)
        return _locks.take(folders, _say)

    # Rank 0 may wait for a sign of life of every owner.
    timeout = timedelta(minutes=args.distributed_timeout_minutes)
    return problems_of_rank_0(ask, timeout + len(folders) * timedelta(seconds=2 * GONE_SECONDS))


def lock_problems(args: Namespace) -> list[Problem]:
    """Folders that another job writes into by now, as far as can be said without waiting."""
    return [
        in_use(flag, folder, owner)
        for flag, folder, owner in _owned(args)
        if owner.has_this_machine()
    ]


def lock_notices(args: Namespace) -> list[str]:
    """Locks of another machine, whose jobs may have ended, one line each."""
    return [
        f"{flag} ({folder}) has the lock of a job on another machine ({owner}); a second job is "
        "refused while that one lives"
        for flag, folder, owner in _owned(args)
        if not owner.has_this_machine()
    ]


def _owned(args: Namespace) -> Iterator[tuple[str, Path, Owner]]:
    for flag, folder in _folders(args).items():
        if _locks is not None and _locks.holds(folder):
            continue
        # What is wrong with a folder that cannot be looked into, machine.py says.
        with contextlib.suppress(OSError):
            if owner := look(folder, _say, wait=False):
                yield flag, folder, owner


def _folders(args: Namespace) -> dict[str, Path]:
    """By flag, every one once; what lies in an object store (msc://) has no place for a lock."""
    found: dict[str, Path] = {}
    for name in _FLAGS:
        value = getattr(args, name, None)
        # An evaluation writes nothing; and nothing can be at a name with a zero in it.
        if not value or is_remote(args, value) or "\0" in value or args.skip_train:
            continue
        folder = Path(value)
        if os.path.realpath(folder) not in map(os.path.realpath, found.values()):
            found[flag_of(name)] = folder
    return found


def _say(line: str) -> None:
    print(f"grove_megatron: {line}", file=sys.stderr, flush=True)
