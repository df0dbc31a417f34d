"""Is there a whole checkpoint where a run would load one?

Megatron answers a damaged tracker file with exit code 0, and takes a half-written folder for one
of another format.
"""

import os
from argparse import Namespace
from pathlib import Path

from ..checkpoint.layout import (
    COMPLETE,
    INDEX,
    RELEASE,
    TRACKER,
    checkpoint_named,
    is_remote,
    is_same,
    iteration_of,
    read_tracker,
)
from ..checks.flags import flag_of
from ..checks.problem import UNSAID, Problem
from ..checks.rules import Check


def read_at_start(args: Namespace) -> tuple[str, ...]:
    """Names of the arguments whose checkpoint a run reads: Megatron takes one of the two.

    ``--pretrained-checkpoint`` is for a run that has saved nothing yet.
    """
    if args.pretrained_checkpoint is None or _has_tracker(args.load):
        return () if args.load is None else ("load",)
    return ("pretrained_checkpoint",)


def checkpoints_to_load(args: Namespace, load_arg: str) -> list[Path]:
    """What Megatron may load of a folder, the one it takes last; those that are here.

    Args:
        args, load_arg: as of :func:`checkpoint_folder_problem`.
    """
    given = getattr(args, load_arg)
    if given is None or is_remote(args, given):
        return []
    places = [(Path(given), args.ckpt_step)]
    if args.non_persistent_ckpt_type == "global":
        places.append((_non_persistent(args, given), None))
    found = []
    for folder, step in places:
        written = read_tracker(folder)
        name = checkpoint_named(written, step)
        if name is not None and os.path.isdir(folder / name):
            found.append((step or iteration_of(written) or 0, folder / name))
    # Of two of one iteration, the second.
    return [path for _, path in sorted(found, key=lambda one: one[0])]


def checkpoint_folder_problem(args: Namespace, load_arg: str) -> Problem | None:
    """Why the checkpoint that ``load_arg`` (an argument's name) names cannot be read, or None.

    Args:
        args: Megatron's namespace.
    """
    given, step = getattr(args, load_arg), args.ckpt_step
    if given is None or is_remote(args, given):
        return None
    folder = Path(given)
    tracker = folder / TRACKER
    written = read_tracker(folder)
    if written is None and os.path.isfile(tracker):
        text = "is there and cannot be read; give this job the right to"
        return Problem(str(tracker), UNSAID, text)
    if written is None and not step:
        why = _without_tracker(folder)
        return None if why is None else Problem(flag_of(load_arg), folder, why)
    if written == RELEASE and step:
        return Check(args).problem(
            "{ckpt_step} is passed over by Megatron beside {tracker}; write {step} into that file, "
            "or leave the step out",
            tracker=f"{tracker} ({RELEASE})",
            step=step,
        )
    if written is not None and checkpoint_named(written) is None:
        text = f"does not name an iteration; {_way_out(folder)}"
        return Problem(str(tracker), written, text)
    name = checkpoint_named(written, step)
    assert name is not None, "a step or an iteration is"
    if args.non_persistent_ckpt_type is not None or _is_whole(folder / name, args.ckpt_format):
        return None
    text = f"names {folder / name}, which is not complete; {_way_out(folder, step)}"
    return Problem("--ckpt-step", step, text) if step else Problem(str(tracker), written, text)


# What is asked of a checkpoint that is not there, and what would happen without a word.
_NEEDS_ONE = {
    "skip_train": "would evaluate random weights",
    "finetune": "would train from random weights",
    "use_checkpoint_args": "would take no flags from it",
    "exit_on_missing_checkpoint": "would end with exit code 0 once the model is built",
    "override_ckpt_iteration": "would begin at 0",
    "ckpt_convert_format": "would convert nothing",
    "load_main_params_from_ckpt": "would train from random weights",
    "moe_use_upcycling": "would upcycle random weights",
}
# Of these a run that begins with the folder it is going to save to has none either.
_OF_A_RESUMED_RUN = ("use_checkpoint_args", "override_ckpt_iteration")


def nothing_to_load(args: Namespace) -> list[Problem]:
    """Flags that name a checkpoint, or ask something of one, where there is none."""
    check = Check(args)
    names = read_at_start(args)
    if any(_holds_one(args, name) for name in names):
        return []
    if "pretrained_checkpoint" in names:
        why_not = _holds_nothing(args.pretrained_checkpoint)
        return [check.problem("{pretrained_checkpoint} {why_not}", why_not=why_not)]
    needy = {name: why for name, why in _NEEDS_ONE.items() if getattr(args, name, None)}
    begins = is_same(args.load, args.save)
    for name in _OF_A_RESUMED_RUN if begins else ():
        needy.pop(name, None)
    if args.load is None:
        # Of --skip-train there is a notice; the others are named elsewhere, or do nothing.
        needy = {name: why for name, why in needy.items() if name == "finetune"}
        if args.ckpt_step:
            needy["ckpt_step"] = "would load nothing"
    which = "names none" if args.load is None else _holds_nothing(args.load)
    return [
        check.problem(f"{{{name}}} needs a checkpoint and {why}: {{load}} {{which}}", which=which)
        for name, why in needy.items()
    ]


def begins_at_random(args: Namespace) -> str | None:
    """That a run loads nothing although a flag says so, or evaluates what nobody trained; or None.

    One that begins in the folder it will save to is as it should be.
    """
    check = Check(args)
    if any(_holds_one(args, name) for name in read_at_start(args)):
        return None
    if args.load is None:
        random = "--skip-train (True) without --load (None) evaluates random weights"
        return random if args.skip_train else None
    if is_same(args.load, args.save):
        return None
    return f"the run begins with random weights: {check.said('load')} {_holds_nothing(args.load)}"


def _holds_nothing(folder: str) -> str:
    path = Path(folder)
    if not os.path.isdir(path):
        return "is not there; correct the path"
    if any(path.glob("*.safetensors")):
        return "is a model in Hugging Face format; make a checkpoint of it with grove import"
    return f"holds no checkpoint (no {TRACKER}); correct the path"


def _holds_one(args: Namespace, load_arg: str) -> bool:
    """Would Megatron load something from there, be it damaged?"""
    folder = getattr(args, load_arg)
    if is_remote(args, folder) or _has_tracker(folder):
        return True
    if load_arg != "load":
        return False
    kind = args.non_persistent_ckpt_type
    other = _non_persistent(args, folder)
    return bool(args.ckpt_step or kind == "local" or (kind and _has_tracker(other)))


def _has_tracker(folder: Path | str | None) -> bool:
    return folder is not None and os.path.isfile(Path(folder) / TRACKER)


def _non_persistent(args: Namespace, folder: str) -> Path:
    """Where the checkpoints between those of a folder are."""
    return Path(args.non_persistent_global_ckpt_dir or Path(folder) / "non_persistent")


def _without_tracker(folder: Path) -> str | None:
    """Megatron starts such a run from the beginning: from random weights."""
    if not os.path.isdir(folder):
        return None  # said by nothing_to_load, or the folder of a run that begins
    if os.path.isfile(folder / COMPLETE) or any(folder.glob("mp_rank_0*")):
        return f"is one checkpoint, not the folder of a run; give {folder.parent}"
    if os.path.isfile(folder / RELEASE / COMPLETE):
        return f"has {RELEASE} and no {TRACKER}; write {RELEASE} into {folder / TRACKER}"
    if len(_complete(folder)) > 1:
        return f"has checkpoints and no {TRACKER}; {_way_out(folder)}"
    return None  # one alone can be the first save of a run that was killed before the tracker


def _is_whole(checkpoint: Path, ckpt_format: str) -> bool:
    """Has Megatron written the last file of this checkpoint?"""
    if not os.path.isdir(checkpoint):
        return False
    if os.path.isfile(checkpoint / COMPLETE) or any(checkpoint.glob("mp_rank_0*")):
        return True
    return ckpt_format != "torch_dist" and os.path.isfile(checkpoint / INDEX)


def _way_out(folder: Path, step: int | None = None) -> str:
    iterations = _complete(folder)
    if step:
        there = ", ".join(map(str, sorted(iterations)[-5:]))
        return f"use one of {there}" if there else f"no checkpoint in {folder} is complete"
    if not iterations:
        return f"no checkpoint in {folder} is complete: remove that file to begin again"
    last = max(iterations)
    return f"write {last} into {folder / TRACKER}: the last complete checkpoint in {folder}"


def _complete(folder: Path) -> list[int]:
    """The iterations of complete checkpoints."""
    if not os.path.isdir(folder):
        return []
    names = [path.parent.name.removeprefix("iter_") for path in folder.glob(f"iter_*/{COMPLETE}")]
    return [int(name) for name in names if name.isdecimal()]
