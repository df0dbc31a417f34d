"""Settings of saving with which Megatron dies, or deletes what it should keep, in a later save."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from ..checkpoint.layout import (
    RELEASE,
    TRACKER,
    goes_on,
    is_remote,
    is_same,
    iteration_of,
    read_tracker,
)
from ..switches import flag_of


def saving_problems(args: Namespace) -> list[str]:
    """One line each.

    Args:
        args: Megatron's namespace, parsed.
    """
    problems = [*_formats(args)]
    if args.save is None or args.skip_train:
        return problems
    problems += _retained(args)
    if args.non_persistent_save_interval or args.non_persistent_ckpt_type == "global":
        problems += _non_persistent(args)
    return problems


def _retained(args: Namespace) -> Iterator[str]:
    """Megatron reads the iteration before from the tracker, once the data are written
    (checkpointing.py:1010 @ 0.19.2)."""
    kept = args.save_retain_interval
    if kept is None:
        return
    written = read_tracker(args.save)
    if written == RELEASE:
        yield (
            f"--save-retain-interval ({kept}) cannot count from the {RELEASE} that --save "
            f"({args.save}) holds; save to another folder and give this one as "
            "--pretrained-checkpoint"
        )
    elif written is not None and iteration_of(written) is None:
        yield (
            f"--save-retain-interval ({kept}) cannot count from {Path(args.save) / TRACKER} "
            f"({written}), which is not an iteration; correct it, or save to another folder"
        )
    if args.non_persistent_save_interval:
        yield (
            f"--save-retain-interval ({kept}) excludes --non-persistent-save-interval "
            f"({args.non_persistent_save_interval}): Megatron would delete checkpoints in --save "
            "by the iterations of the other; leave one out"
        )


def _formats(args: Namespace) -> Iterator[str]:
    """Kinds of checkpoints that do not go together, whatever is saved."""
    every, kind = args.non_persistent_save_interval, args.non_persistent_ckpt_type
    if args.ckpt_format == "torch" and args.async_save:
        yield "--async-save (True) excludes --ckpt-format (torch); use torch_dist"
    if every and kind is None:
        yield (
            f"--non-persistent-save-interval ({every}) needs --non-persistent-ckpt-type (None); "
            "use global"
        )
    saves = every or args.use_distributed_optimizer
    if kind == "local" and saves and args.dist_ckpt_optim_fully_reshardable:
        yield (
            f"--non-persistent-ckpt-type ({kind}) excludes --dist-ckpt-optim-fully-reshardable "
            "(True); use global"
        )


def _non_persistent(args: Namespace) -> Iterator[str]:
    kind = args.non_persistent_ckpt_type
    if kind == "in_memory":
        yield f"--non-persistent-ckpt-type ({kind}) is not there in Megatron; use global"
    if kind == "global":
        yield from _global(args)


def _global(args: Namespace) -> Iterator[str]:
    kind, own = args.non_persistent_ckpt_type, args.non_persistent_global_ckpt_dir
    if args.ckpt_format == "torch":
        yield f"--non-persistent-ckpt-type ({kind}) excludes --ckpt-format (torch); use torch_dist"
    if own is None:
        return
    # All but the last checkpoint in it and below it is deleted.
    for name in ("save", "load", "pretrained_checkpoint"):
        folder = getattr(args, name)
        if folder and Path(folder).resolve().is_relative_to(Path(own).resolve()):
            yield (
                f"--non-persistent-global-ckpt-dir ({own}) holds {flag_of(name)} "
                f"({folder}), and all but the last checkpoint in it is deleted; use a folder of "
                "its own"
            )
            return
    for path in Path(own).rglob("iter_*"):
        if not path.name.removeprefix("iter_").isdecimal():
            yield (
                f"--non-persistent-global-ckpt-dir ({own}) holds {path}, which is not a checkpoint "
                "of Megatron's; use a folder of its own"
            )
            return


def replaced_run(args: Namespace) -> str | None:
    """That this run does not go on from what is in --save and writes over it, or None."""
    if args.save is None or args.skip_train or is_remote(args, args.save) or goes_on(args):
        return None
    iteration = iteration_of(read_tracker(args.save))
    if iteration is None:
        return None
    why = f"--load ({args.load}) is not that folder"
    if is_same(args.load, args.save):
        why = f"--finetune ({args.finetune}) begins at 0"
    return (
        f"--save ({args.save}) holds a run up to iteration {iteration} and {why}: this run does "
        "not go on from it, and writes into it"
    )
