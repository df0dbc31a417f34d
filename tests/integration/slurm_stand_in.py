"""Where Slurm is not installed: srun, scontrol, scancel, squeue and sbatch, as far as launch.py
calls them, on this machine alone.

Tasks get Slurm's variables as the real srun 22.05 gives them (test_cluster.py compares them where
it is installed). Also as the real ones: sbatch runs a copy of the script, SIGTERM to srun kills its
tasks at once, and a job that is put back runs again with SLURM_RESTART_COUNT.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

FOLDER = "SLURM_STAND_IN"
NAMES = ("srun", "scontrol", "scancel", "squeue", "sbatch")


def install(folder: Path) -> dict[str, str]:
    """The programs in ``folder/bin``; the environment that finds them."""
    (folder / "bin").mkdir(parents=True)
    for name in NAMES:
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} "$@"\n')
        program.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", FOLDER: str(folder)}


def hosts(nodelist: str) -> list[str]:
    """``0x7f[000001-000002]``, whole."""
    prefix, inside = re.fullmatch(r"([^\[]*)(?:\[(.*)\])?", nodelist).groups()  # type: ignore[union-attr]
    found = []
    for part in (inside or "").split(","):
        first, _, last = part.partition("-")
        for number in range(int(first or 0), int(last or first or 0) + 1):
            found.append(f"{prefix}{number:0{len(first)}d}" if inside else prefix)
    return found


def job_variables(nodes: int, number: int = 1) -> dict[str, str]:
    """Of a batch script with one task a node."""
    last = f"-{nodes:06d}" if nodes > 1 else ""
    nodelist = f"0x7f[000001{last}]" if nodes > 1 else "0x7f000001"
    per_node = f"1(x{nodes})" if nodes > 1 else "1"
    return {
        "SLURM_JOB_ID": str(number),
        "SLURM_JOBID": str(number),
        "SLURM_JOB_NODELIST": nodelist,
        "SLURM_NODELIST": nodelist,
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS": str(nodes),
        "SLURM_NPROCS": str(nodes),
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_TASKS_PER_NODE": per_node,
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURMD_NODENAME": "0x7f000001",
        "SLURM_SUBMIT_DIR": os.getcwd(),
    }


def task_variables(nodelist: str, nodes: int, per_node: int, rank: int) -> dict[str, str]:
    """Of one task of a step."""
    node, local = divmod(rank, per_node)
    tasks, here = str(nodes * per_node), f"{per_node}(x{nodes})" if nodes > 1 else str(per_node)
    return {
        "SLURM_STEP_ID": "0",
        "SLURM_STEPID": "0",
        "SLURM_STEP_NODELIST": nodelist,
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_NUM_TASKS": tasks,
        "SLURM_STEP_TASKS_PER_NODE": here,
        "SLURM_TASKS_PER_NODE": here,
        "SLURM_NTASKS": tasks,
        "SLURM_NPROCS": tasks,
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(local),
        "SLURM_NODEID": str(node),
        "SLURMD_NODENAME": hosts(nodelist)[node],
    }


def _options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """``--name value`` and ``--name=value`` before the first word without."""
    found: dict[str, str] = {}
    rest = [*words]
    while rest and rest[0].startswith("--"):
        name, equals, value = rest.pop(0).partition("=")
        alone = name in ("--noheader", "--steps", "--parsable", "--batch")
        found[name] = value if equals or alone else rest.pop(0)
    return found, rest


def srun(words: list[str]) -> int:
    given, command = _options(words)
    nodes, per_node = int(given["--nodes"]), int(given["--ntasks-per-node"])
    assert int(given["--ntasks"]) == nodes * per_node
    step = Path(os.environ[FOLDER], f"{given['--job-name']}.step")
    tasks = []
    for rank in range(nodes * per_node):
        named = task_variables(os.environ["SLURM_JOB_NODELIST"], nodes, per_node, rank)
        name = given.get("--output", "/dev/stdout")
        name = name.replace("%n", named["SLURM_NODEID"]).replace("%t", str(rank))
        with open(name, "ab") as output:
            task = subprocess.Popen(
                command,
                env=os.environ | named,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        tasks.append(task)
    step.write_text(json.dumps([task.pid for task in tasks]))

    def kill(*_: object) -> None:
        for task in tasks:
            if task.poll() is None:
                os.killpg(task.pid, signal.SIGKILL)

    signal.signal(signal.SIGTERM, kill)
    while any(task.poll() is None for task in tasks):
        if any(task.returncode for task in tasks):
            time.sleep(0.5)
            kill()  # --kill-on-bad-exit
        time.sleep(0.05)
    step.unlink()
    return max(128 - code if code < 0 else code for code in (task.wait() for task in tasks))


def scontrol(words: list[str]) -> int:
    if words[:2] == ["show", "hostnames"]:
        print("\n".join(hosts(words[2])))
    else:
        assert words[0] == "requeue"
        Path(os.environ[FOLDER], "requeue").touch()
    return 0


def squeue(words: list[str]) -> int:
    job = _options(words)[0]["--job"]
    for number, step in enumerate(sorted(Path(os.environ[FOLDER]).glob("*.step"))):
        print(f"{job}.{number} {step.stem}")
    return 0


def scancel(words: list[str]) -> int:
    given, (name,) = _options(words)
    number = getattr(signal, f"SIG{given['--signal']}")
    folder = Path(os.environ[FOLDER])
    if "--batch" in given:
        os.kill(int((folder / "batch").read_text()), number)
        return 0
    steps = sorted(folder.glob("*.step"))
    for pid in json.loads(steps[int(name.partition(".")[2])].read_text()):
        os.killpg(pid, number)
    return 0


def sbatch(words: list[str]) -> int:
    """Runs the job, and again as long as it is put back; ends with it, as sbatch --wait."""
    given, (script, *arguments) = _options(words)
    folder = Path(os.environ[FOLDER])
    spool = folder / "slurm_script"
    shutil.copy(script, spool)
    spool.chmod(0o700)
    code = 0
    for count in range(100):
        (folder / "requeue").unlink(missing_ok=True)
        named = job_variables(int(given["--nodes"]))
        if count:
            named["SLURM_RESTART_COUNT"] = str(count)
        with Path(given["--output"]).open("ab") as log:
            batch = subprocess.Popen(
                [spool, *arguments], env=os.environ | named, stdout=log, stderr=log
            )
        (folder / "batch").write_text(str(batch.pid))
        code = batch.wait()
        if not (folder / "requeue").exists():
            break
    return code


if __name__ == "__main__":
    called = {one.__name__: one for one in (srun, scontrol, squeue, scancel, sbatch)}
    sys.exit(called[sys.argv[1]](sys.argv[2:]))
