"""Ranks that srun or mpirun starts, without torchrun: their names for what Megatron reads.

``srun --ntasks 16 python -m grove_megatron.pretrain ...`` starts 16 processes which know their
places by Slurm's variables alone. Megatron reads torchrun's, and without them each would train a
model of its own. What torchrun has set stays: it may well run inside a task of srun.

Names of Slurm: srun(1), "OUTPUT ENVIRONMENT VARIABLES"; those of a job step, as a batch script has
SLURM_NTASKS and SLURM_PROCID too and is one process. Of Open MPI: mpirun(1), "MPI environment".
"""

import os
import re
import sys
from collections.abc import Mapping

from ..checks.problem import Problem

TASKS = "SLURM_STEP_NUM_TASKS"
_MPI = "OMPI_COMM_WORLD"
# Below those that the system gives to whoever connects.
_PORTS = range(20_000, 32_000)
_STEPS = 64
"""Steps of one job that get ports of their own."""


def take_ranks(environment: Mapping[str, str]) -> tuple[dict[str, str], str, list[Problem]]:
    """What to set for Megatron.

    Args:
        environment: of this process.

    Returns:
        torchrun's variables of this process, a line for the user, and problems. No variables where
        torchrun has set them, or where nothing says that there are several processes.
    """
    # mpirun may start its processes inside tasks of srun, srun none inside of mpirun's.
    if _number(environment, f"{_MPI}_SIZE") > 1:
        found, line, problems = _of_mpi(environment)
    elif _number(environment, TASKS) > 1 and not _is_shell(environment):
        found, line, problems = _of_slurm(environment)
    else:
        return {}, "", []
    if "RANK" in environment:
        return {}, "", _alone_in_many(environment, int(found["WORLD_SIZE"]))
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        if environment.get(name, found.get(name)) != found.get(name):
            text = f"differs from what {line.split(':')[0]} says ({found.get(name)}); unset it"
            problems.append(Problem(name, environment[name], text))
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    # Other words mean that there is none: it is known elsewhere whether that will do.
    seen = all(one.isdecimal() or one.startswith(("GPU-", "MIG-")) for one in visible)
    if seen and int(found["LOCAL_RANK"]) >= len(visible):
        text = (
            f"is not below the number of GPUs that this process sees (CUDA_VISIBLE_DEVICES: "
            f"{','.join(visible)}); let every process see all GPUs of its node: srun --gpu-bind "
            "none, with --gpus-per-node and not --gpus-per-task"
        )
        problems.append(Problem("LOCAL_RANK", found["LOCAL_RANK"], text))
    return ({} if problems else found), line, problems


def _is_shell(environment: Mapping[str, str]) -> bool:
    """Is this process called by hand, in the terminal of srun --pty?

    What srun starts out of such a shell has the shell's SLURM_PTY_PORT too, but no terminal.
    """
    return "SLURM_PTY_PORT" in environment and os.isatty(0)


def announce(found: Mapping[str, str], line: str) -> None:
    """Say once who has numbered the ranks."""
    if found.get("RANK") == "0":
        print(f"grove_megatron: {line}", file=sys.stderr, flush=True)


def first_host(nodelist: str) -> str:
    """The first of Slurm's short list: ``n001`` of ``n[001-004,7],login``."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodelist)[0])


def counts(per_node: str) -> list[int]:
    """Of Slurm's short list of numbers: 4, 4, 2 of ``4(x2),2``."""
    found: list[int] = []
    for part in per_node.split(","):
        number, _, times = part.partition("(x")
        found += [int(number)] * int(times.rstrip(")") or 1)
    return found


def _of_slurm(environment: Mapping[str, str]) -> tuple[dict[str, str], str, list[Problem]]:
    tasks = environment[TASKS]
    needed = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NODELIST")
    needed += ("SLURM_STEP_TASKS_PER_NODE", "SLURM_JOB_ID", "SLURM_STEP_ID")
    problems = [
        Problem(name, "unset", f"is needed beside {TASKS} ({tasks}); start the job with srun")
        for name in needed
        if name not in environment
    ]
    if problems:
        return {"WORLD_SIZE": tasks, "LOCAL_RANK": "0"}, "srun", problems
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    host = first_host(environment["SLURM_STEP_NODELIST"])
    port = _PORTS[(job * _STEPS + step) % len(_PORTS)]
    here = counts(environment["SLURM_STEP_TASKS_PER_NODE"])[int(environment["SLURM_NODEID"])]
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(here),
        "GROUP_RANK": environment["SLURM_NODEID"],
        "MASTER_ADDR": environment.get("MASTER_ADDR", host),
        "MASTER_PORT": environment.get("MASTER_PORT", str(port)),
    }
    meet = f"{found['MASTER_ADDR']}:{found['MASTER_PORT']}"
    return found, f"srun: {tasks} tasks, a rank each; they meet at {meet}", []


def _of_mpi(environment: Mapping[str, str]) -> tuple[dict[str, str], str, list[Problem]]:
    ranks = environment[f"{_MPI}_SIZE"]
    names = {
        "RANK": f"{_MPI}_RANK",
        "WORLD_SIZE": f"{_MPI}_SIZE",
        "LOCAL_RANK": f"{_MPI}_LOCAL_RANK",
        "LOCAL_WORLD_SIZE": f"{_MPI}_LOCAL_SIZE",
        "MASTER_ADDR": "MASTER_ADDR",
        "MASTER_PORT": "MASTER_PORT",
    }
    problems = [
        Problem(
            name,
            "unset",
            f"is needed beside {_MPI}_SIZE ({ranks}); mpirun -x MASTER_ADDR=the first host "
            "-x MASTER_PORT=29500, or start the job with torchrun",
        )
        for name in names.values()
        if name not in environment
    ]
    found = {name: environment.get(other, "0") for name, other in names.items()}
    meet = f"{found['MASTER_ADDR']}:{found['MASTER_PORT']}"
    return found, f"mpirun: {ranks} processes, a rank each; they meet at {meet}", problems


def _alone_in_many(environment: Mapping[str, str], processes: int) -> list[Problem]:
    """RANK was set for all of them alike, and each would be a job of its own."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return []
    ranks = _number(environment, "WORLD_SIZE")
    if ranks >= processes:
        return []
    text = (
        f"is below the number of processes ({processes}) that were started; each would train by "
        "itself: unset RANK and WORLD_SIZE, or start one process"
    )
    return [Problem("WORLD_SIZE", ranks, text)]


def _number(environment: Mapping[str, str], name: str) -> int:
    """1 where nothing is said."""
    value = environment.get(name, "1")
    return int(value) if value.isdecimal() else 1
