"""Can this machine take what a job writes: are its folders writable, has the disk room?

A job that cannot dies with its first checkpoint, after hours. Looked at by writing a file without
a name: permission bits say nothing of read-only mounts, quotas and root.
"""

import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from megatron.core.datasets.object_storage_utils import is_object_storage_path

from ..checkpoint.layout import TRACKER
from ..switches import flag_of
from .data_files import prefixes

# What a job writes to, and the setting that it takes besides.
_FOLDERS = {
    "save": None,
    "non_persistent_global_ckpt_dir": "non_persistent_save_interval",
    "non_persistent_local_ckpt_dir": "non_persistent_save_interval",
    "ckpt_convert_save": "ckpt_convert_format",
    "tensorboard_dir": None,
    "wandb_save_dir": "wandb_project",
    "data_cache_path": None,
    "object_storage_cache_path": None,
    "grove_metrics_dir": None,
    "moe_routing_trace_path": None,
    "logits_save_dir": None,
    "config_logger_dir": None,
    "rl_profile_dir": "rl_profile",
}
# Files, whose folder has to be there.
_FILES = {
    "memory_snapshot_path": "record_memory_history",
    "dump_param_to_param_group_map": None,
    "result_rejected_tracker_filename": None,
    "flight_recorder_dump_path": None,
}


def folder_problems(args: Namespace) -> Iterator[str]:
    """Places to write to that cannot be written, one line each.

    Args:
        args: Megatron's namespace, parsed.
    """
    for name, path in _given(args, _FOLDERS):
        if why := why_not_writable(path):
            yield f"{flag_of(name)} ({path}) cannot be written: {why}; use another folder"
    for name, path in _given(args, _FILES):
        why = "it is a folder" if os.path.isdir(path) else why_not_writable(path.parent)
        if why is None and not os.path.isdir(path.parent):
            why = f"{path.parent} is not there"
        if why:
            yield f"{flag_of(name)} ({path}) cannot be written: {why}; use another file"
    if args.save and not _is_remote(args, args.save):
        tracker = Path(args.save) / TRACKER
        if os.path.exists(tracker) and (why := _why_not_opened(tracker)):
            yield f"--save ({args.save}) cannot be written: {tracker}: {why}; use another folder"
    yield from _index_cache_problems(args)


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


def _index_cache_problems(args: Namespace) -> Iterator[str]:
    """Without --data-cache-path, the order of samples is written beside the data."""
    if args.data_cache_path or args.mock_data or args.dataloader_type == "external":
        return
    for prefix in prefixes(args):
        cache = Path(prefix) / "cache"
        if os.path.isdir(cache) or not os.path.isfile(f"{prefix}.idx"):
            continue  # written by a job before; or refused as data
        if why := why_not_writable(cache):
            yield (
                f"--data-cache-path (None) puts an index of samples into {cache}, which cannot be "
                f"written: {why}; give a folder"
            )
            return


def _given(args: Namespace, names: dict[str, str | None]) -> Iterator[tuple[str, Path]]:
    for name, needs in names.items():
        path = getattr(args, name, None)
        if path and (needs is None or getattr(args, needs, None)) and not _is_remote(args, path):
            yield name, Path(path)


def _is_remote(args: Namespace, path: str) -> bool:
    """Of an object store, whose client is asked by Megatron."""
    return bool(args.enable_msc or "://" in path or is_object_storage_path(path))
