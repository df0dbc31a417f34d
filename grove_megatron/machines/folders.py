"""Do all nodes see what one writes, and how late?"""

import contextlib
import os
import time
from argparse import Namespace
from pathlib import Path

from ..checkpoint.layout import is_remote
from ..checks.flags import flag_of
from ..training.machine import cache_readers, caches, is_filled, nearest
from .meeting import Meeting
from .records import Seen

_LOOK_SECONDS = 0.02
_PARTED = ("save", "non_persistent_global_ckpt_dir")
_OF_ONE_RANK = ("grove_metrics_dir", "tensorboard_dir")


def shared_folders(args: Namespace) -> dict[str, Path]:
    """Folders that a job of several nodes writes to, by flag.

    Args:
        args: Megatron's, parsed.
    """
    found: dict[str, Path] = {}
    # The oldest format keeps a file for each rank, which loads it again on its own node.
    parted = () if args.ckpt_format == "torch" else _PARTED
    writes = [] if args.skip_train else [*parted, *_OF_ONE_RANK]
    for name in writes:
        path = getattr(args, name, None)
        if path and not is_remote(args, path):
            found[flag_of(name)] = Path(path)
    if not cache_readers(args):
        # The first stands for all: one for each file of a blend may be thousands.
        for _, cache in [*caches(args)][:1]:
            found["--data-cache-path" if args.data_cache_path else "--data-path"] = cache
    return found


def look(meeting: Meeting, folders: dict[str, Path], bound: float) -> list[Seen]:
    """Write a file into every folder, and look for those that were written; every rank must call.

    Of caches the node of rank 0 alone writes, as in the job. The files are gone in the end. A
    folder that is not there yet is looked at where it will be.

    Args:
        meeting: of the ranks.
        folders: by flag, the same flags on every node.
        bound: seconds to wait for all to be seen.

    Returns:
        What this node saw, on its first rank; nothing of a job of one node.
    """
    if len(meeting.nodes) == 1:
        return []
    if not meeting.is_first:
        meeting.told(None)
        meeting.wait()
        return []
    errors: dict[str, str] = {}
    names = [f".grove_machines_{meeting.token}_{i}" for i in range(len(meeting.nodes))]
    node_names = [meeting.node_of[ranks[0]] for ranks in meeting.nodes]
    mine = names[node_names.index(meeting.mine)]
    # Named once: a folder that appears in between changes what is nearest.
    places = {flag: nearest(folder) for flag, folder in folders.items()}
    wrote: list[str] = []
    try:
        for flag, place in places.items():
            if _is_cache(flag) and mine != names[0]:
                continue
            if why := _write(place / mine):
                errors[flag] = why
            else:
                wrote.append(flag)
        written = dict(zip(names, meeting.told(wrote), strict=True))
        begun = time.monotonic()
        # Where this node cannot write, its own checks have refused the folder already.
        tried = [flag for flag in places if flag not in errors]
        missing = {flag: {name for name in names if flag in written[name]} for flag in tried}
        seconds: dict[str, float] = {}
        while missing.keys() - seconds.keys():
            for flag, still in missing.items():
                still -= {name for name in still if os.path.exists(places[flag] / name)}
                if not still:
                    seconds.setdefault(flag, time.monotonic() - begun)
            if time.monotonic() - begun > bound:
                break
            time.sleep(_LOOK_SECONDS)
        meeting.wait()
    finally:
        for flag in wrote:
            # What cannot be taken away is not worth what was found.
            with contextlib.suppress(OSError):
                (places[flag] / mine).unlink()
    return [
        Seen(
            node=meeting.mine,
            flag=flag,
            folder=str(folder),
            unseen=tuple(
                name
                for name, file in zip(node_names, names, strict=True)
                if file in missing.get(flag, ())
            ),
            seconds=seconds.get(flag),
            filled=_is_cache(flag) and is_filled(folder),
            error=errors.get(flag, ""),
        )
        for flag, folder in folders.items()
    ]


def _is_cache(flag: str) -> bool:
    return flag.startswith("--data")


def _write(path: Path) -> str:
    """Why it could not be."""
    try:
        with path.open("x") as file:
            file.write("grove_megatron")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return ""
