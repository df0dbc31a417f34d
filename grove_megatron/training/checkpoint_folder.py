"""Is there a whole checkpoint where a run would load one?

Megatron answers a damaged tracker file with exit code 0, and takes a half-written folder for one
of another format.
"""

from argparse import Namespace
from pathlib import Path

from ..runtime.checkpoint_files import COMPLETE, INDEX, TRACKER


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
        return None  # a run that starts from the beginning
    written = tracker.read_text(errors="replace").strip()
    if written != "release" and not written.isdecimal():
        return f"{tracker} ({written}) does not name an iteration; {_way_out(folder)}"
    step = getattr(args, "ckpt_step", None)
    name = f"iter_{step or int(written):07d}" if step or written != "release" else written
    if args.non_persistent_ckpt_type is not None or _is_whole(folder / name, args.ckpt_format):
        return None
    who = f"--ckpt-step ({step})" if step else f"{tracker} ({written})"
    return f"{who} names {folder / name}, which is not complete; {_way_out(folder)}"


def _is_whole(checkpoint: Path, ckpt_format: str) -> bool:
    """Has Megatron written the last file of this checkpoint?"""
    if (checkpoint / COMPLETE).is_file() or any(checkpoint.glob("mp_rank_0*")):
        return True
    return ckpt_format != "torch_dist" and (checkpoint / INDEX).is_file()


def _way_out(folder: Path) -> str:
    whole = [path.parent.name for path in folder.glob(f"iter_*/{COMPLETE}")]
    iterations = [int(name.removeprefix("iter_")) for name in whole if name[5:].isdecimal()]
    if not iterations:
        return f"no checkpoint in {folder} is complete: remove that file to begin again"
    last = max(iterations)
    return f"write {last} into {folder / TRACKER}: the last complete checkpoint in {folder}"
