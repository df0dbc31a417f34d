"""Is there a whole checkpoint where a run would load one?

Megatron answers a damaged tracker file with exit code 0, and takes a half-written folder for one
of another format.
"""

from argparse import Namespace
from pathlib import Path

from ..checkpoint.layout import COMPLETE, INDEX, RELEASE, TRACKER


def checkpoint_folder_problem(args: Namespace, load_arg: str) -> str | None:
    """Why the checkpoint that ``load_arg`` (an argument's name) names cannot be read, or None.

    Args:
        args: Megatron's namespace.
    """
    if getattr(args, load_arg) is None or args.enable_msc:
        return None  # Megatron's storage client knows files that are not here
    folder = Path(getattr(args, load_arg))
    tracker = folder / TRACKER
    if not tracker.is_file():
        return None if args.ckpt_step else _without_tracker(folder, load_arg)
    written = tracker.read_text(errors="replace").strip()
    if written != RELEASE and not written.isdecimal():
        return f"{tracker} ({written}) does not name an iteration; {_way_out(folder)}"
    step = getattr(args, "ckpt_step", None)
    name = f"iter_{step or int(written):07d}" if step or written != RELEASE else written
    if args.non_persistent_ckpt_type is not None or _is_whole(folder / name, args.ckpt_format):
        return None
    who = f"--ckpt-step ({step})" if step else f"{tracker} ({written})"
    return f"{who} names {folder / name}, which is not complete; {_way_out(folder)}"


def _without_tracker(folder: Path, load_arg: str) -> str | None:
    """Megatron starts such a run from the beginning: from random weights."""
    flag = f"--{load_arg.replace('_', '-')} ({folder})"
    if (folder / COMPLETE).is_file():
        return f"{flag} is one checkpoint, not the folder of a run; give {folder.parent}"
    if (folder / RELEASE / COMPLETE).is_file():
        return f"{flag} has {RELEASE} and no {TRACKER}; write {RELEASE} into {folder / TRACKER}"
    if len(_complete(folder)) > 1:
        return f"{flag} has checkpoints and no {TRACKER}; {_way_out(folder)}"
    return None  # one alone can be the first save of a run that was killed before the tracker


def _is_whole(checkpoint: Path, ckpt_format: str) -> bool:
    """Has Megatron written the last file of this checkpoint?"""
    if (checkpoint / COMPLETE).is_file() or any(checkpoint.glob("mp_rank_0*")):
        return True
    return ckpt_format != "torch_dist" and (checkpoint / INDEX).is_file()


def _way_out(folder: Path) -> str:
    iterations = _complete(folder)
    if not iterations:
        return f"no checkpoint in {folder} is complete: remove that file to begin again"
    last = max(iterations)
    return f"write {last} into {folder / TRACKER}: the last complete checkpoint in {folder}"


def _complete(folder: Path) -> list[int]:
    """The iterations of complete checkpoints."""
    names = [path.parent.name.removeprefix("iter_") for path in folder.glob(f"iter_*/{COMPLETE}")]
    return [int(name) for name in names if name.isdecimal()]
