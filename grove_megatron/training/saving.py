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
from ..checks.problem import Problem
from ..checks.rules import Check


def saving_problems(args: Namespace) -> list[Problem]:
    """What is wrong with what is saved, and where.

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


def _retained(args: Namespace) -> Iterator[Problem]:
    """Megatron reads the iteration before from the tracker, once the data are written
    (checkpointing.py:1010 @ 0.19.2)."""
    check = Check(args)
    kept = args.save_retain_interval
    if kept is None:
        return
    written = read_tracker(args.save)
    if written == RELEASE:
        yield check.problem(
            f"{{save_retain_interval}} cannot count from the {RELEASE} that {{save}} holds; save "
            "to another folder and give this one as --pretrained-checkpoint"
        )
    elif written is not None and iteration_of(written) is None:
        yield check.problem(
            "{save_retain_interval} cannot count from {tracker}, which is not an iteration; "
            "correct it, or save to another folder",
            tracker=f"{Path(args.save) / TRACKER} ({written})",
        )
    if args.non_persistent_save_interval:
        why = ": Megatron would delete checkpoints in --save by the iterations of the other"
        both = ("save_retain_interval", "non_persistent_save_interval")
        yield from check.excludes(*both, "leave one out", why=why)


def _formats(args: Namespace) -> Iterator[Problem]:
    """Kinds of checkpoints that do not go together, whatever is saved."""
    check = Check(args)
    every, kind = args.non_persistent_save_interval, "non_persistent_ckpt_type"
    if args.ckpt_format == "torch":
        yield from check.excludes("async_save", "ckpt_format", "use torch_dist")
    yield from check.needs("non_persistent_save_interval", kind, "use global")
    if args.non_persistent_ckpt_type == "local" and (every or args.use_distributed_optimizer):
        yield from check.excludes(kind, "dist_ckpt_optim_fully_reshardable", "use global")


def _non_persistent(args: Namespace) -> Iterator[Problem]:
    kind = args.non_persistent_ckpt_type
    if kind == "in_memory":
        yield Check(args).problem("{non_persistent_ckpt_type} is not there in Megatron; use global")
    if kind == "global":
        yield from _global(args)


def _global(args: Namespace) -> Iterator[Problem]:
    check = Check(args)
    own = args.non_persistent_global_ckpt_dir
    if args.ckpt_format == "torch":
        yield from check.excludes("non_persistent_ckpt_type", "ckpt_format", "use torch_dist")
    if own is None:
        return
    # All but the last checkpoint in it and below it is deleted.
    for name in ("save", "load", "pretrained_checkpoint"):
        folder = getattr(args, name)
        if folder and Path(folder).resolve().is_relative_to(Path(own).resolve()):
            yield check.problem(
                f"{{non_persistent_global_ckpt_dir}} holds {{{name}}}, and all but the last "
                "checkpoint in it is deleted; use a folder of its own"
            )
            return
    for path in Path(own).rglob("iter_*"):
        if not path.name.removeprefix("iter_").isdecimal():
            yield check.problem(
                "{non_persistent_global_ckpt_dir} holds {path}, which is not a checkpoint of "
                "Megatron's; use a folder of its own",
                path=path,
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
