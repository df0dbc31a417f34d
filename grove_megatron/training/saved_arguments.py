"""The arguments in the checkpoints that a run would load, read so that nothing in them runs.

Megatron unpickles what it loads without limits, on every rank; so what it must not load is found
here first, before Megatron opens a file.
"""

import contextlib
import copy
import io
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from megatron.training.checkpointing import load_args_from_checkpoint

from ..checkpoint.layout import COMPLETE, INDEX, RELEASE, TRACKER
from ..checkpoint.pickles import ON_PURPOSE, NotData, is_trusted, read_objects, unknown_names, why
from ..checkpoint.torch_dist import COMMON, TorchDistReader

_NON_PERSISTENT = "non_persistent"
# Of an iteration; Python refuses to read thousands of them.
_MOST_DIGITS = 18


def saved_arguments(args: Namespace, load_arg: str) -> Namespace | None:
    """The arguments of the job that saved what a run would load; None: it would load nothing.

    Args:
        args: Megatron's namespace.
        load_arg: ``load`` or ``pretrained_checkpoint``.

    Raises:
        ValueError: they cannot be read, or loading them could run code.
    """
    if getattr(args, load_arg) is None:
        return None
    if args.enable_msc or is_trusted():
        return _as_megatron_reads(args, load_arg)
    folders = _folders(args, load_arg)
    if not folders:
        return None
    try:
        found = _arguments(folders[-1])
    except ValueError as error:
        if isinstance(error.__cause__, NotData):
            raise ValueError(f"{error}, {ON_PURPOSE}") from error
        raise
    if found is not None and not isinstance(found, Namespace):
        raise ValueError(f"{folders[-1]} has arguments that are none of Megatron's; name another")
    return found


def foreign_problems(args: Namespace, load_arg: str) -> list[str]:
    """What Megatron must not load of the checkpoints of a run, one line each.

    Args:
        args, load_arg: as of :func:`saved_arguments`.
    """
    if getattr(args, load_arg) is None or args.enable_msc or is_trusted():
        return []
    return [line for folder in _folders(args, load_arg) for line in _foreign(folder)]


def _as_megatron_reads(args: Namespace, load_arg: str) -> Namespace | None:
    # Fills in a copy of the flags, and says so at length.
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = load_args_from_checkpoint(copy.copy(args), load_arg=load_arg)
    return loaded[1] if isinstance(loaded, tuple) else None


def _folders(args: Namespace, load_arg: str) -> list[Path]:
    """What Megatron may load, the one it takes the arguments from last."""
    folder = Path(getattr(args, load_arg))
    step = getattr(args, "ckpt_step", None)
    found = [_iteration(folder, step)]
    if args.non_persistent_ckpt_type == "global":
        beside = Path(args.non_persistent_global_ckpt_dir or folder / _NON_PERSISTENT)
        found.append(_iteration(beside, None))
    there = [(number, path) for number, path in found if os.path.isdir(path)]
    # Of two of one iteration, the second.
    return [path for _, path in sorted(there, key=lambda one: one[0])]


def _iteration(folder: Path, step: int | None) -> tuple[int, Path]:
    """The number and the place that Megatron reads from a tracker."""
    try:
        written = (folder / TRACKER).read_text().strip()
    except (OSError, ValueError):  # not text, or no name of a file
        written = ""
    is_number = written.isdecimal() and len(written) <= _MOST_DIGITS
    number = step or (int(written) if is_number else -1)
    return number, folder / (RELEASE if written == RELEASE else f"iter_{number:07d}")


def _arguments(folder: Path) -> Any:
    if (folder / COMPLETE).is_file():
        reader = TorchDistReader(folder)
        _refuse(reader.foreign_objects([COMMON]))
        return reader.common().get("args")
    if legacy := sorted(folder.glob("mp_rank_00*/*model*rng.pt")):
        _refuse(_foreign_file(legacy[0]))
        loaded = read_objects(legacy[0], str(legacy[0]))
        return loaded.get("args") if isinstance(loaded, dict) else loaded
    if (folder / INDEX).is_file():
        reader = TorchDistReader(folder, megatrons=False)
        _refuse(reader.foreign_objects(["args"]))
        return reader.saved_object("args")
    return None


def _refuse(lines: list[str]) -> None:
    if lines:
        raise ValueError(lines[0])


def _foreign(folder: Path) -> list[str]:
    complete = (folder / COMPLETE).is_file()
    if not complete and not (folder / INDEX).is_file():
        files = sorted(folder.glob("mp_rank_*/*.pt"))
        return [line for file in files for line in _foreign_file(file)]
    try:
        return TorchDistReader(folder, megatrons=complete).foreign_objects()
    except ValueError:
        return []  # said already, with the arguments


def _foreign_file(file: Path) -> list[str]:
    """Torch admits none of these names in Megatron's job, and Megatron then ends with exit 0."""
    try:
        names = unknown_names(file)
    except Exception as error:  # a pickle can fail in any way
        return [f"{file} cannot be read: {why(error)}"]
    return [f"{file} is not to be loaded: {NotData(names)}, {ON_PURPOSE}"] if names else []
