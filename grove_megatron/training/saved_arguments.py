"""The arguments in the checkpoints that a run would load, read so that nothing in them runs.

Megatron unpickles what it loads without limits, on every rank; so what it must not load is found
here first, before Megatron opens a file.
"""

import contextlib
import copy
import io
import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron.training.checkpointing import load_args_from_checkpoint

from ..checkpoint.layout import COMPLETE, INDEX, TRACKER
from ..checkpoint.pickles import ON_PURPOSE, NotData, is_trusted, read_objects, unknown_names, why
from ..checkpoint.torch_dist import COMMON, TorchDistReader
from ..checks.problem import Problem
from .checkpoint_folder import checkpoints_to_load


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
    folders = checkpoints_to_load(args, load_arg)
    return _arguments(folders[-1], _reader(folders[-1])) if folders else None


def look_into(args: Namespace, load_arg: str) -> tuple[Namespace | None, list[Problem]]:
    """:func:`saved_arguments`, and what Megatron must not load of any checkpoint of a run.

    Args:
        args, load_arg: as of :func:`saved_arguments`.

    Returns:
        the arguments, None where they cannot be had, and problems.
    """
    saved, problems = None, []
    folders = [] if is_trusted() else checkpoints_to_load(args, load_arg)
    for folder in folders[:-1]:
        with contextlib.suppress(ValueError):  # Megatron takes the last, and that one alone
            problems += _foreign(folder, _reader(folder))
    try:
        if not folders:
            return saved_arguments(args, load_arg), []
        reader = _reader(folders[-1])
        problems += _cut_short(folders[-1], reader)
        problems += _foreign(folders[-1], reader)
        saved = _arguments(folders[-1], reader)
    except ValueError as error:
        problems.append(str(error))
    # The arguments are one of the objects that are looked at.
    return saved, [*map(Problem.of_text, dict.fromkeys(problems))]


def _as_megatron_reads(args: Namespace, load_arg: str) -> Namespace | None:
    # Fills in a copy of the flags, and says so at length.
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = load_args_from_checkpoint(copy.copy(args), load_arg=load_arg)
    return loaded[1] if isinstance(loaded, tuple) else None


def _reader(folder: Path) -> TorchDistReader | None:
    """Of a checkpoint in one of torch's formats; None: it has a file of every rank, or nothing.

    Raises:
        ValueError: its index cannot be read, or loading it could run code.
    """
    complete = os.path.isfile(folder / COMPLETE)
    if not complete and (_files_of_ranks(folder) or not os.path.isfile(folder / INDEX)):
        return None
    with _naming_the_way_out():
        return TorchDistReader(folder, megatrons=complete)


def _files_of_ranks(folder: Path) -> list[Path]:
    return sorted(folder.glob("mp_rank_*/*.pt"))


def _arguments(folder: Path, reader: TorchDistReader | None) -> Namespace | None:
    """Raises ValueError: they cannot be read, or loading them could run code."""
    found: Any = None
    with _naming_the_way_out():
        if reader is not None:
            has_common = os.path.isfile(folder / COMPLETE)
            _refuse(reader.foreign_objects([COMMON if has_common else "args"]))
            found = reader.common().get("args") if has_common else reader.saved_object("args")
        elif legacy := sorted(folder.glob("mp_rank_00*/*model*rng.pt")):
            _refuse(_foreign_file(legacy[0]))
            loaded = read_objects(legacy[0], str(legacy[0]))
            found = loaded.get("args") if isinstance(loaded, dict) else loaded
    if found is not None and not isinstance(found, Namespace):
        raise ValueError(f"{folder} has arguments that are none of Megatron's; name another")
    return found


@contextlib.contextmanager
def _naming_the_way_out() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if isinstance(error.__cause__, NotData):
            raise ValueError(f"{error}, {ON_PURPOSE}") from error
        raise


def _refuse(lines: list[str]) -> None:
    if lines:
        raise ValueError(lines[0])


def _foreign(folder: Path, reader: TorchDistReader | None) -> list[str]:
    if reader is not None:
        return reader.foreign_objects()
    return [line for file in _files_of_ranks(folder) for line in _foreign_file(file)]


def _cut_short(folder: Path, reader: TorchDistReader | None) -> list[str]:
    """Megatron would end with an EOFError of no file, on every rank, once the model is built."""
    found = [] if reader is None else reader.short_files()
    way_out = f"restore it, or name another iteration in {folder.parent / TRACKER}"
    return [f"{line}; {way_out}" for line in found]


def _foreign_file(file: Path) -> list[str]:
    """Torch admits none of these names in Megatron's job, and Megatron then ends with exit 0."""
    try:
        names = unknown_names(file)
    except Exception as error:  # a pickle can fail in any way
        return [f"{file} cannot be read: {why(error)}"]
    return [f"{file} is not to be loaded: {NotData(names)}, {ON_PURPOSE}"] if names else []
