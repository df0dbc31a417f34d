"""Can this machine take what a job writes: are its folders writable, has the disk room?

A job that cannot dies with its first checkpoint, after hours. Looked at by writing a file without
a name: permission bits say nothing of read-only mounts, quotas and root.
"""

import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from ..checkpoint.layout import TRACKER, is_remote
from ..checks.flags import flag_of
from ..checks.problem import Problem
from ..checks.rules import Check
from .data_files import prefixes

# What a job writes to, and the setting that it takes besides.
_FOLDERS = {
    "save": None,
    "non_persistent_global_ckpt_dir": "non_persistent_save_interval",
    "non_persistent_local_ckpt_dir": "non_persistent_save_interval",
    "ckpt_convert_save": "ckpt_convert_format",
    "tensorboard_dir": None,
    "wandb_save_dir": "wandb_project",
    "object_storage_cache_path": None,
    "grove_metrics_dir": None,
    "moe_routing_trace_path": None,
    "logits_save_dir": None,
    "config_logger_dir": None,
    "rl_profile_dir": "rl_profile",
    "dump_param_to_param_group_map": None,
}
# Files, whose folder nobody makes.
_FILES = {
    "memory_snapshot_path": "record_memory_history",
    "result_rejected_tracker_filename": None,
    "flight_recorder_dump_path": None,
}
# Of these a folder will do too: Megatron puts its files into it.
_FILES_OR_FOLDERS = ("flight_recorder_dump_path",)
_READS_CACHE = ("dataloader_fast_cache_load", "dataloader_defer_npy_index_mmap")


def folder_problems(args: Namespace) -> Iterator[Problem]:
    """Places to write to that cannot be written.

    Args:
        args: Megatron's namespace, parsed.
    """
    for name, path in _given(args, _FOLDERS):
        if why := why_not_writable(path):
            yield _unwritable(name, path, why)
    for name, path in _given(args, _FILES):
        if why := _why_no_file(name, path):
            yield _unwritable(name, path, why, "file")
    if args.save and not is_remote(args, args.save):
        tracker = Path(args.save) / TRACKER
        if os.path.exists(tracker) and (why := _why_not_opened(tracker)):
            yield _unwritable("save", args.save, f"{tracker}: {why}")
    yield from _profile_problems(args)
    yield from _cache_problems(args)


def _unwritable(name: str, path: Path, why: str, kind: str = "folder") -> Problem:
    return Problem(flag_of(name), path, f"cannot be written: {why}; use another {kind}")


def cache_notice(args: Namespace) -> str | None:
    """That the order of samples can be read alone, as a job before has left it, or None."""
    check = Check(args)
    for puts, cache, why in _unwritable_caches(args):
        if is_filled(cache):
            return (
                f"{check.said('data_cache_path')} {puts}cannot be written ({why}); an order of "
                "samples that is not there yet would end the job"
            )
    return None


def why_not_writable(folder: Path) -> str | None:
    """Why no file can be written into ``folder``, which need not exist yet, or None.

    Nothing is left behind.
    """
    try:
        folder = folder.absolute()
        if folder.is_symlink() and not folder.exists():
            return f"a link to {os.readlink(folder)}, which is not there"
        there = nearest(folder)
        os.stat(there)
        if not there.is_dir():
            return f"{there} is not a folder"
        for name in folder.relative_to(there).parts:
            if len(os.fsencode(name)) > os.pathconf(there, "PC_NAME_MAX"):
                return "a name is too long"
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0")
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    folder = folder.absolute()
    return next((p for p in (folder, *folder.parents) if os.path.lexists(p)), folder)


def _why_not_opened(file: Path) -> str | None:
    try:
        with file.open("r+b"):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _why_no_file(name: str, path: Path) -> str | None:
    if os.path.isdir(path):
        return why_not_writable(path) if name in _FILES_OR_FOLDERS else "it is a folder"
    why = why_not_writable(path.parent)
    if why is None and not os.path.isdir(path.parent):
        return f"{path.parent} is not there"
    return why


def _profile_problems(args: Namespace) -> Iterator[Problem]:
    """The profiler of torch writes beside the folder of TensorBoard."""
    check = Check(args)
    board = args.tensorboard_dir
    if not (board and args.profile and args.use_pytorch_profiler) or is_remote(args, board):
        return
    if why_not_writable(Path(board)):
        return  # said already
    for name in ["torch_profile", *["chakra"] * args.pytorch_profiler_collect_chakra]:
        folder = Path(os.path.realpath(board)).parent / name
        if why := why_not_writable(folder):
            yield check.problem(
                "{tensorboard_dir} puts the traces of --use-pytorch-profiler into {folder}, which "
                "cannot be written: {why}; use another folder",
                folder=folder,
                why=why,
            )


def _cache_problems(args: Namespace) -> Iterator[Problem]:
    check = Check(args)
    path = args.data_cache_path
    if path and (readers := cache_readers(args)):
        if not is_remote(args, path) and (why := _why_not_read(Path(path))):
            yield check.problem(
                f"{{data_cache_path}} cannot be read: {{why}}; {{{readers[0]}}} needs the folder "
                "that a job without it has filled",
                why=why,
            )
        return
    for puts, cache, why in _unwritable_caches(args):
        if not is_filled(cache):
            text = f"{puts}cannot be written: {why}; give another folder"
            yield Problem("--data-cache-path", path, text)
            return


def _unwritable_caches(args: Namespace) -> Iterator[tuple[str, Path, str]]:
    """Where Megatron cannot add an order of samples: what it puts there, where, why not."""
    if cache_readers(args):
        return
    for puts, cache in caches(args):
        if why := why_not_writable(cache):
            yield puts, cache, why


def cache_readers(args: Namespace) -> list[str]:
    """Settings given by which a job reads the order of samples as another left it, and writes none.

    Args:
        args: Megatron's namespace, parsed.
    """
    return [name for name in _READS_CACHE if getattr(args, name)]


def caches(args: Namespace) -> Iterator[tuple[str, Path]]:
    """Without --data-cache-path they are beside the data."""
    if path := args.data_cache_path:
        if not is_remote(args, path):
            yield "", Path(path)
    elif not args.mock_data and args.dataloader_type != "external":
        for prefix in prefixes(args):
            cache = Path(prefix) / "cache" / "GPTDataset_indices"
            if os.path.isfile(f"{prefix}.idx"):  # or it is refused as data
                yield f"puts an index of samples into {cache}, which ", cache


def is_filled(cache: Path) -> bool:
    """Has a job left an order of samples there? It may be another one."""
    return _why_not_read(cache) is None and any(cache.glob("*.npy"))


def _why_not_read(folder: Path) -> str | None:
    try:
        os.listdir(folder)
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def _given(args: Namespace, names: dict[str, str | None]) -> Iterator[tuple[str, Path]]:
    for name, needs in names.items():
        path = getattr(args, name, None)
        if path and (needs is None or getattr(args, needs, None)) and not is_remote(args, path):
            yield name, Path(path)
