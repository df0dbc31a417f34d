"""Is there room for the checkpoints of a job? As far as the planner knows their size."""

import copy
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from ..checkpoint.layout import goes_on, is_remote, iteration_of, read_tracker
from ..checks.problem import Problem
from ..comm.node_groups import ranks_per_node
from ..model.parameters import total_parameters
from ..model.subsets import trained_parameters
from .machine import nearest
from .sizes import sizes_of

_GIB = 2**30


def disk_problems(args: Namespace, world_size: int | None) -> Iterator[Problem]:
    """Folders on disks without room for one checkpoint.

    Args:
        args: parsed, not yet validated, without basic problems.
        world_size: processes of the job.
    """
    for flag, folder, size in _saves(args, world_size):
        if size > (free := _free(folder)):
            yield Problem(
                flag,
                folder,
                f"has {_gib(free)} free and a checkpoint needs ({_gib(size)}); make room, use "
                "another disk, or --no-save-optim",
            )


def disk_notice(args: Namespace, world_size: int | None) -> str | None:
    """That the disk has no room for all checkpoints of the run, or None."""
    if not args.train_iters or not args.save_interval:
        return None
    for flag, folder, size in _saves(args, world_size):
        # What a run that goes on has saved before has its place.
        begun = (iteration_of(read_tracker(args.save)) or 0) if goes_on(args) else 0

        def saved(every: int, begun: int = begun) -> int:
            return max(0, args.train_iters // every - begun // every)

        kept = saved(args.save_interval)
        if args.save_retain_interval:
            # The last, and the one that is being written.
            kept = min(kept, saved(args.save_retain_interval) + 2)
        if flag == "--save" and (room := _free(folder) // size) < kept:
            return (
                f"{flag} ({folder}) has room for {room} checkpoints of {_gib(size)}, and "
                f"--save-interval ({args.save_interval}) keeps {kept} until --train-iters "
                f"({args.train_iters}); see --save-retain-interval"
            )
    return None


def checkpoint_bytes(args: Namespace, world_size: int | None) -> int | None:
    """Of a whole checkpoint; None where the planner does not know the model."""
    args = copy.copy(args)
    # As Megatron's validation does.
    args.num_layers = args.num_layers or args.encoder_num_layers
    args.seq_length = args.seq_length or args.encoder_seq_length
    try:
        sizes = sizes_of(args, world_size)
        whole = total_parameters(sizes.model).total
        chosen = sizes.training.train_only
        trained = trained_parameters(sizes.model, chosen).total if chosen else whole
    except ValueError:
        return None
    precision = sizes.training.precision
    optimizer = 0 if args.no_save_optim else precision.main_weight + precision.moments
    return whole * precision.weight + trained * optimizer


def _saves(args: Namespace, world_size: int | None) -> Iterator[tuple[str, Path, int]]:
    """Flags, folders, and bytes of a checkpoint, of a run that makes any."""
    if args.skip_train or _is_split_over_nodes(args, world_size):
        return
    folders = {"--save": args.save}
    if args.non_persistent_save_interval and args.non_persistent_ckpt_type == "global":
        folders["--non-persistent-global-ckpt-dir"] = args.non_persistent_global_ckpt_dir
    folders = {
        flag: folder for flag, folder in folders.items() if folder and not is_remote(args, folder)
    }
    size = checkpoint_bytes(args, world_size) if folders else None
    for flag, folder in folders.items():
        there = nearest(Path(folder))
        # A file system that does not know its size has nothing of it.
        if size and os.path.isdir(there) and shutil.disk_usage(there).total:
            yield flag, Path(folder), size


def _is_split_over_nodes(args: Namespace, world_size: int | None) -> bool:
    """Can every node have its part on a disk of its own? Only of the oldest format, which keeps a
    file for each rank."""
    return args.ckpt_format == "torch" and ranks_per_node() not in (None, world_size)


def _free(folder: Path) -> int:
    return shutil.disk_usage(nearest(folder)).free


def _gib(size: int) -> str:
    return f"{size / _GIB:,.2f} GiB"
