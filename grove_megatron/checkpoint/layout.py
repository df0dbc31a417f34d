"""The folder that a job saves its checkpoints in: names in it, as Megatron chooses them, and what
its tracker says."""

import os
from argparse import Namespace
from pathlib import Path

# Names the checkpoint to resume from.
TRACKER = "latest_checkpointed_iteration.txt"
# What the tracker names, and the folder of, a checkpoint that belongs to no iteration.
RELEASE = "release"
# Written last: it marks a complete checkpoint.
COMPLETE = "metadata.json"
# The index of torch's format; Megatron takes a folder that has it alone for another format.
INDEX = ".metadata"
# Of an iteration; Python refuses to read thousands of them.
_MOST_DIGITS = 18


def read_tracker(folder: Path | str) -> str | None:
    """What the tracker in ``folder`` says; None: there is none that can be read."""
    try:
        return (Path(folder) / TRACKER).read_text(errors="replace").strip()
    except (OSError, ValueError):  # of another user, or no name of a file
        return None


def iteration_of(written: str | None) -> int | None:
    """The iteration that a tracker names; None: it names none."""
    is_number = written is not None and written.isdecimal() and len(written) <= _MOST_DIGITS
    return int(written or 0) if is_number else None


def checkpoint_named(written: str | None, step: int | None = None) -> str | None:
    """The folder of a run's checkpoint that Megatron takes; None: it takes none.

    Args:
        written: in the tracker.
        step: ``--ckpt-step``, which Megatron passes over beside ``RELEASE``.
    """
    if written == RELEASE:
        return RELEASE
    iteration = step or iteration_of(written)
    return None if iteration is None else f"iter_{iteration:07d}"


def is_remote(args: Namespace, path: str) -> bool:
    """Is a path of Megatron's in an object store, whose client alone knows what is there?"""
    return bool(args.enable_msc) or "://" in path


def is_same(one: str | None, other: str | None) -> bool:
    """Do both name one folder?"""
    return None not in (one, other) and os.path.realpath(one or "") == os.path.realpath(other or "")


def goes_on(args: Namespace) -> bool:
    """Does the same command go on from what it has saved?

    With ``--finetune`` Megatron begins at 0 with whatever it loads (checkpointing.py:2473 @
    0.19.2). It sets that itself once it has loaded ``--pretrained-checkpoint``, so ask the flags as
    they were given.
    """
    return is_same(args.load, args.save) and not args.finetune
