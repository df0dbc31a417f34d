"""The ``grove doctor`` command."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import typer

from ..checks.problem import Problem, Refusal


def doctor(
    context: typer.Context,
    world_size: Annotated[
        int | None,
        typer.Option(
            help="Processes of the job; by default torchrun's, else the fewest that the parallel "
            "sizes need."
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(help="cpu or cuda, what the job will run on; by default what is found here."),
    ] = "",
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            metavar="GIB",
            help="GiB of a GPU of the job: say whether a rank fits, and what takes most; exits 2 "
            "if it does not.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """Check a job's command line on any machine: every problem at once, or what the job will do.

    Takes the flags of the job, or all of its command: grove doctor torchrun --nproc-per-node 8 -m
    grove_megatron.pretrain --num-layers 48 ... Exits 0 if it would start, 2 if not.
    """
    from .refuse import refuse
    from .start import quiet, started

    if device not in ("", "cpu", "cuda"):
        fix = "leave it out for what is here"
        refuse([Problem("--device", device, f"is not one of cpu, cuda; {fix}")])
    if gpu_memory is not None and not gpu_memory > 0:
        fix = "use the GiB of one GPU"
        refuse([Problem("--gpu-memory", f"{gpu_memory:g}", f"is not above 0; {fix}")])
    try:
        job = job_command(context.args)
    except Refusal as refusal:
        refuse(refusal.problems)
    processes = job.processes if world_size is None else world_size
    if processes is None and os.environ.get("WORLD_SIZE", "").isdecimal():
        processes = int(os.environ["WORLD_SIZE"])
    if processes is not None and processes < 1:
        fix = "use the number of processes of the job"
        refuse([Problem("--world-size", processes, f"is below 1; {fix}")])
    # The runtime of this process is not that of the job.
    with started(say=False), quiet():
        from ..runtime import cpu_is_active
        from .doctor import diagnose

        notices = [job.notice] if job.notice else []
        if not device:
            device = "cpu" if cpu_is_active() else "cuda"
            if gpu_memory is not None and device == "cpu":
                device = "cuda"
                notices.append("--gpu-memory is of a GPU, so this is for --device cuda")
        found = diagnose(
            job.flags,
            processes,
            device,
            per_node=job.per_node,
            own_script=job.own_script,
            gpu_memory=gpu_memory,
            script=job.script,
        )
    if os.environ.get("RANK", "0") != "0":
        raise typer.Exit(2 if found.problems else 0)
    stream = sys.stderr if as_json else sys.stdout
    where = f"{found.world_size} process{'es' if found.world_size > 1 else ''} on {found.device}"
    count = len(found.problems)
    heading = f"{count} problem{'s' if count > 1 else ''}" if count else "no problem found"
    print(f"grove_megatron: {heading}, {where}", file=stream)
    for number, line in enumerate(found.problems, 1):
        print(f"  {number}. {line}", file=stream)
    found = replace(found, notices=[*notices, *found.notices])
    for line in [*found.plan, *(f"note: {notice}" for notice in found.notices)]:
        print(line, file=stream)
    if as_json:
        print(json.dumps(asdict(found) | {"problems": [*map(str, found.problems)]}))
    raise typer.Exit(2 if found.problems else 0)


@dataclass(frozen=True)
class JobCommand:
    """What a command line says of a job; ``None`` where it says nothing.

    Attributes:
        flags: of the job.
        processes, per_node: of all of it and of a node, where torchrun is told.
        own_script: do the flags go to a script, not to grove_megatron.pretrain?
        script: the words behind grove_megatron.run, the first of which is one.
        notice: what is not known of it; empty: nothing.
    """

    flags: list[str]
    processes: int | None = None
    per_node: int | None = None
    own_script: bool = False
    script: list[str] | None = None
    notice: str = ""


def _torchs(words: list[str]) -> Namespace:
    """torchrun has the same options but one."""
    from torch.distributed.launch import parse_args

    parsed: Namespace = parse_args(words)
    return parsed


def job_command(
    words: list[str], launcher_of: Callable[[list[str]], Namespace] = _torchs
) -> JobCommand:
    """A job from its flags alone, from ``-m MODULE`` or a script and flags, or from all of it.

    Args:
        launcher_of: parses what stands behind torchrun.

    Raises:
        Refusal: torchrun is told no number of nodes.
    """
    if words[:1] == ["-m"] and len(words) > 1:
        return _program(words[1], words[2:])
    if not words or words[0].startswith("-"):
        return JobCommand(words)
    launcher = next((i for i, word in enumerate(words) if _is_torchrun(word)), None)
    if launcher is not None:
        launch = launcher_of(words[launcher + 1 :])
        here = str(launch.nproc_per_node)
        per_node = int(here) if here.isdecimal() else None
        nodes = str(launch.nnodes).rpartition(":")[2]
        if not nodes.isdecimal():
            text = "is not a number or two, as 2 or 1:4; correct it"
            raise Refusal([Problem("--nnodes", launch.nnodes, text)])
        return replace(
            _program(launch.training_script, launch.training_script_args),
            processes=per_node and int(nodes) * per_node,
            per_node=per_node,
            notice=f"--nproc-per-node ({here}) is known where the job runs; see --world-size"
            if per_node is None
            else "",
        )
    # Flags before the program are of what starts it: srun, mpirun, python.
    program = next((i for i in range(len(words)) if _is_program(words, i)), None)
    if program is None:
        # A program in no file of Python.
        flags = (i for i, word in enumerate(words) if word.startswith("--"))
        program = next(flags, len(words)) - 1
    return _program(words[program], words[program + 1 :])


_PRETRAIN, _RUN = "grove_megatron.pretrain", "grove_megatron.run"
_LAUNCHERS = ("torch.distributed.run", "torch.distributed.launch")


def _is_torchrun(word: str) -> bool:
    return os.path.basename(word) == "torchrun" or word in _LAUNCHERS


def _is_program(words: list[str], place: int) -> bool:
    before = words[:place]
    of_python = before[-1:] == ["-m"] and any("python" in word for word in before)
    return of_python or words[place] == _PRETRAIN or words[place].endswith(".py")


def _program(name: str, words: list[str]) -> JobCommand:
    """A module or a script with its words; ``grove_megatron.run`` takes a script before flags."""
    if name == _RUN:
        return JobCommand(words[1:], own_script=True, script=words)
    return JobCommand(words, own_script=name != _PRETRAIN)
