#!/usr/bin/env python3
"""Start one job on many nodes, whoever gives the nodes: torchrun, Slurm, SkyPilot or ssh.

    launch.py [options] -- -m grove_megatron.pretrain FLAGS...
    launch.py [options] -- path/to/pretrain_gpt.py FLAGS...

README.md beside this file shows each launcher. Needs the Python standard library alone, so that it
runs on a login node. Exit codes: the job's own; 2 if anything was refused before or by the job.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

REFUSED = 2
SLURM = ("slurm", "slurm-ranks")
LAUNCHERS = ("torchrun", *SLURM, "sky", "ssh")
COORDINATED = (*SLURM, "ssh")
"""Called once; the others are called once on every node."""
DEFAULT_PORT = 29500
REQUEUES = 5
_LOOK_SECONDS = 0.2
_ASK_SECONDS = 1.0
"""Between two tries to reach the ranks by Slurm."""
# What the agent of a node needs to end beyond the grace time of its ranks.
_SPARE_SECONDS = 20.0
LOST = 255
"""ssh's own exit code: the connection, or what it has started there, is gone."""
# SLURM_STEP_ID of the shell that salloc starts on the first node (LaunchParameters of slurm.conf).
INTERACTIVE_STEP = "4294967290"

# Whoever gives the nodes says the same thing under a name of his own.
VARIABLES = {
    "sky": {
        "nodes": ("SKYPILOT_NUM_NODES",),
        "node_rank": ("SKYPILOT_NODE_RANK",),
        "gpus": ("SKYPILOT_NUM_GPUS_PER_NODE",),
    },
    **{key: {"nodes": ("SLURM_JOB_NUM_NODES",), "gpus": ("SLURM_GPUS_ON_NODE",)} for key in SLURM},
    # torchrun's own PET_*, as Kubeflow sets them, and what scripts call the same.
    "torchrun": {
        "nodes": ("PET_NNODES", "NNODES"),
        "node_rank": ("PET_NODE_RANK", "NODE_RANK"),
        "gpus": ("PET_NPROC_PER_NODE",),
    },
    "ssh": {},
    # launch.py itself as the one task of a node.
    "srun": {"nodes": ("SLURM_STEP_NUM_NODES",), "node_rank": ("SLURM_NODEID",)},
    "all": {
        "master_addr": ("PET_MASTER_ADDR", "MASTER_ADDR"),
        "port": ("PET_MASTER_PORT", "MASTER_PORT"),
    },
}
OPTIONS = {
    "nodes": "--nodes",
    "node_rank": "--node-rank",
    "gpus": "--gpus-per-node",
    "master_addr": "--master-addr",
    "port": "--port",
}


class Refused(Exception):
    """All problems; each a line."""


class Raw(str):
    """A word that the shell of the node is to expand."""


@dataclass(frozen=True)
class Job:
    """One job: where it runs, and what."""

    launcher: str
    hosts: tuple[str, ...]
    nodes: int
    gpus: int
    node_rank: int | None
    master_addr: str
    port: int
    program: tuple[str, ...]
    given: argparse.Namespace
    environment: dict[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    device: str = ""
    found: str = ""


# ------------------------------------------------------------------------------ what is asked for


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="launch.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = made.add_argument
    add("--launcher", choices=("auto", *LAUNCHERS), default="auto")
    add("--nodes", type=int, help="default: what the launcher says, else 1")
    add("--node-rank", type=int, help="of this node, where launch.py is called on every one")
    add("--gpus-per-node", dest="gpus", type=int, help="ranks of a node, one for each GPU")
    add("--hosts", help="a,b,c: reached by ssh; the first has rank 0")
    add("--hostfile", help="the same, one a line; slots=8 is checked if it is there")
    add("--master-addr", help="where ranks meet; default: the first host")
    add(
        "--port",
        type=int,
        help=f"there; the next one is used too (default: {DEFAULT_PORT},\n"
        "a free one for one node, one of the job's number under Slurm)",
    )
    add(
        "--dry-run",
        action="store_true",
        help="print what each node runs, and start nothing; places that nobody\n"
        "names are node0, node1, ...",
    )
    add("--no-doctor", action="store_true", help="do not check the command line first")
    add("--no-machines", action="store_true", help="do not look at the machines first")
    add(
        "--machines",
        type=shlex.split,
        default=[],
        metavar="OPTIONS",
        help='of grove_megatron.machines, as one word: --machines="--strict --seconds 60"',
    )
    add("--max-restarts", type=int, default=0, help="of all ranks, from the last checkpoint")
    add(
        "--requeue",
        type=int,
        nargs="?",
        const=REQUEUES,
        default=0,
        metavar="TIMES",
        help=f"Slurm: put the job back after a failure or a time limit (TIMES: {REQUEUES})",
    )
    add("--grace-seconds", type=float, default=60.0, help="between SIGTERM and SIGKILL")
    add("--logs", metavar="DIR", help="files, one a node (slurm-ranks: a rank)")
    add("--env", action="append", default=[], metavar="KEY=VALUE", help="set on every node")
    add("--python", default=sys.executable, help="of the nodes (default: this one)")
    add("--ssh", default="ssh -o BatchMode=yes -o ServerAliveInterval=15", help="%(default)s")
    add("program", nargs="*", help="behind --: -m MODULE FLAGS, or a script and its flags")
    return made


def program_of(words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """``-m module ...`` of what stands behind ``--``; a script is run with Grove."""
    if words[:1] == ["-m"] and len(words) > 1:
        return tuple(words), []
    if words and words[0].endswith(".py"):
        missing = [] if Path(words[0]).is_file() else [f"{words[0]} is not a file; correct it"]
        return ("-m", "grove_megatron.run", *words), missing
    given = shlex.join(words[:2]) or "nothing"
    fix = "give -- -m grove_megatron.pretrain FLAGS, or -- path/to/script.py FLAGS"
    return ("-m", "grove_megatron.pretrain"), [f"the program ({given}) is not known; {fix}"]


def choose(given: argparse.Namespace, environment: dict[str, str]) -> tuple[str, str]:
    """The launcher, and what says so."""
    if given.launcher != "auto":
        return given.launcher, "--launcher"
    if "SKYPILOT_NODE_IPS" in environment:
        return "sky", "SKYPILOT_NODE_IPS"
    if given.hosts is not None or given.hostfile is not None:
        return "ssh", "--hosts" if given.hosts is not None else "--hostfile"
    if "SLURM_JOB_ID" in environment and not is_task(environment):
        return "slurm", f"SLURM_JOB_ID ({environment['SLURM_JOB_ID']})"
    if is_task(environment):
        return "torchrun", "launch.py is a task of srun (SLURM_STEP_NUM_TASKS)"
    for name in VARIABLES["torchrun"]["nodes"]:
        if name in environment:
            return "torchrun", name
    return "torchrun", "no variable of another launcher"


def is_task(environment: dict[str, str]) -> bool:
    """Has srun started launch.py, not a user in the shell of salloc or of srun --pty?"""
    if "SLURM_STEP_NUM_TASKS" not in environment:
        return False
    # Tasks that srun starts out of such a shell have its SLURM_PTY_PORT too, and no terminal.
    shell = "SLURM_PTY_PORT" in environment and os.isatty(0)
    return not shell and environment.get("SLURM_STEP_ID") != INTERACTIVE_STEP


def values_of(
    launcher: str, given: argparse.Namespace, environment: dict[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Number of nodes and so on, as options and variables have it; who says otherwise."""
    sources = [VARIABLES[launcher], VARIABLES["all"]]
    if launcher != "torchrun":
        sources.append(VARIABLES["torchrun"])
    elif is_task(environment):
        sources.insert(0, VARIABLES["srun"])
    found: dict[str, str] = {}
    problems = []
    for key, option in OPTIONS.items():
        said = [(option, getattr(given, key))] if getattr(given, key) is not None else []
        names = [name for source in sources for name in source.get(key, ())]
        said += [(name, environment[name]) for name in names if environment.get(name)]
        said = [(name, str(value)) for name, value in said if not is_elses(key, str(value))]
        for name, value in [*said]:
            if key != "master_addr" and name != option and not value.isdecimal():
                problems.append(f"{name} ({value}) is not a number; correct it, or unset it")
                said.remove((name, value))
        if not said:
            continue
        found[key] = said[0][1]
        for name, value in said[1:]:
            # Fewer ranks than GPUs is a choice.
            more = key == "gpus" and said[0][0] == option and int(found[key]) <= int(value)
            if value != found[key] and not more and not (key == "gpus" and cpu(given, environment)):
                fix = "unset one, or correct it"
                problems.append(f"{said[0][0]} ({found[key]}) is not {name} ({value}); {fix}")
    return found, problems


def is_elses(key: str, value: str) -> bool:
    """What a variable may also say: torchrun counts, or Kubernetes has a service called master."""
    counted = key == "gpus" and value in ("auto", "cpu", "gpu", "xpu")
    return counted or (key == "port" and value.startswith("tcp://"))


def runtime(given: argparse.Namespace, environment: dict[str, str]) -> str:
    """GROVE_RUNTIME of the ranks; ssh passes on what --env says alone."""
    named = dict(pair.partition("=")[::2] for pair in given.env)
    there = "" if given.hosts or given.hostfile else environment.get("GROVE_RUNTIME", "")
    return named.get("GROVE_RUNTIME", there)


def cpu(given: argparse.Namespace, environment: dict[str, str]) -> bool:
    """Will the ranks run without GPUs?"""
    return runtime(given, environment) == "cpu"


def hosts_of(
    launcher: str, given: argparse.Namespace, environment: dict[str, str]
) -> tuple[list[str], list[str]]:
    """The nodes by name in the order of their ranks, as far as the launcher has names."""
    if launcher == "sky":
        return environment.get("SKYPILOT_NODE_IPS", "").split(), []
    if launcher in SLURM:
        nodelist = environment.get("SLURM_JOB_NODELIST", "")
        if not nodelist or not shutil.which("scontrol"):
            return [], []
        command = ["scontrol", "show", "hostnames", nodelist]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        failed = f"{shlex.join(command)} fails: {shown.stderr.strip()}"
        return shown.stdout.split(), [failed] if shown.returncode else []
    if launcher != "ssh":
        return [], []
    if given.hostfile is None:
        names = [host.strip() for host in (given.hosts or "").split(",")]
        hosts = [host for host in names if host]
        empty = f"--hosts ({given.hosts}) names no host; give a,b,c"
        return hosts, [empty] if given.hosts is not None and not hosts else []
    try:
        lines = Path(given.hostfile).read_text().splitlines()
    except OSError as error:
        return [], [f"--hostfile ({given.hostfile}) cannot be read ({error}); correct it"]
    words = [line.partition("#")[0].split() for line in lines]
    rows = [row for row in words if row]
    problems = [] if rows else [f"--hostfile ({given.hostfile}) names no host; one a line"]
    for row in rows:
        slots = [word.partition("=")[2] for word in row[1:] if word.startswith("slots=")]
        if slots and given.gpus is not None and slots[0] != str(given.gpus):
            says = f"--hostfile ({given.hostfile}) says {row[0]} slots={slots[0]}"
            problems.append(f"{says}, and --gpus-per-node is {given.gpus}; every node has the same")
    return [row[0] for row in rows], problems


def plan(words: list[str], environment: dict[str, str]) -> Job:
    """The job that ``words`` ask for, in an environment.

    Raises:
        Refused: with every problem.
    """
    split = words.index("--") if "--" in words else len(words)
    given = parser().parse_args(words[:split])
    program, problems = program_of(words[split + 1 :] if split < len(words) else given.program)
    launcher, why = choose(given, environment)
    values, contradictions = values_of(launcher, given, environment)
    hosts, of_hosts = hosts_of(launcher, given, environment)
    problems += contradictions + of_hosts + misplaced(launcher, given, environment, values)
    nodes = int(values.get("nodes", len(hosts) or 1))
    if hosts and len(hosts) != nodes:
        who = {"sky": "SKYPILOT_NODE_IPS", "ssh": "--hosts"}.get(launcher, "SLURM_JOB_NODELIST")
        text = f"the number of nodes ({nodes}) is not that of {who} ({len(hosts)}: "
        problems.append(f"{text}{','.join(hosts)}); correct one")
    for host in sorted({host for host in hosts if hosts.count(host) > 1}):
        problems.append(f"{host} is listed {hosts.count(host)} times; name every node once")
    gpus = int(values["gpus"]) if "gpus" in values else gpus_here()
    if gpus is None:
        text = "is needed: neither a variable nor nvidia-smi says how many; "
        problems.append(f"--gpus-per-node {text}on CPUs give the ranks of a node")
    for option, number in (("--nodes", nodes), ("--gpus-per-node", gpus)):
        if number is not None and number < 1:
            problems.append(f"{option} ({number}) is below 1; correct it")
    if given.max_restarts < 0 or given.requeue < 0 or given.grace_seconds <= 0:
        problems.append("--max-restarts, --requeue, --grace-seconds: one is below 0; correct it")
    pairs = [pair.partition("=") for pair in given.env]
    problems += [
        f"--env ({name}) is not KEY=VALUE; correct it"
        for name, equals, _ in pairs
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name)
    ]
    ranks = environment.get("WORLD_SIZE", "")
    if "nodes" not in values and not hosts and ranks.isdecimal() and int(ranks) > 1:
        text = "is set, and nothing says how many nodes; give --nodes, or unset it"
        problems.append(f"WORLD_SIZE ({ranks}) {text}")
    rank = int(values["node_rank"]) if "node_rank" in values else None
    if launcher not in COORDINATED:
        if rank is None and nodes == 1:
            rank = 0
        if not (given.dry_run if rank is None else 0 <= rank < nodes):
            text = "is needed" if rank is None else f"({rank}) is not below --nodes ({nodes})"
            problems.append(
                f"--node-rank {text}; launch.py is called on every node: 0 on the first"
            )
    first = hosts[0].rpartition("@")[2] if hosts else None
    unnamed = "127.0.0.1" if nodes == 1 else "node0" if given.dry_run else ""
    address = values.get("master_addr", first or unnamed)
    if not address:
        problems.append("--master-addr is needed; give the first node's name or address")
    port = int(values["port"]) if "port" in values else default_port(launcher, nodes, environment)
    if not 0 < port < 65_535:
        problems.append(f"--port ({port}) is not in 1..65534; the next one is used too")
    elif address and not given.dry_run and not (launcher not in COORDINATED and rank):
        problems += port_problems(address, port)
    problems += [
        f"{tool} is not on PATH; {launcher} needs it"
        for tool in tools(launcher, given)
        if not shutil.which(tool)
    ]
    if problems:
        raise Refused(*problems)
    assert gpus is not None
    return Job(
        launcher=launcher,
        hosts=tuple(hosts),
        nodes=nodes,
        gpus=gpus,
        node_rank=None if launcher in COORDINATED else rank,
        master_addr=address,
        port=port,
        program=program,
        given=given,
        environment={name: value for name, _, value in pairs},
        unset=tuple(name for name in ("RANK", "WORLD_SIZE") if name in environment),
        device=device(launcher, given, environment),
        found=f"{launcher} ({why}): {nodes} nodes{' (' + ','.join(hosts) + ')' if hosts else ''} x "
        f"{gpus} ranks, meeting at {address}:{port}",
    )


def device(launcher: str, given: argparse.Namespace, environment: dict[str, str]) -> str:
    """What the ranks run on; empty: what is found where doctor is called, which is on a node."""
    said = runtime(given, environment)
    if said in ("cpu", "cuda"):
        return said
    # salloc may have its shell on a login node.
    return "cuda" if launcher in SLURM else ""


def misplaced(
    launcher: str,
    given: argparse.Namespace,
    environment: dict[str, str],
    values: dict[str, str],
) -> list[str]:
    """Options and variables that do not go with the launcher."""
    problems = []
    slurm = launcher in SLURM
    named = given.hosts is not None or given.hostfile is not None
    if given.hosts is not None and given.hostfile is not None:
        problems.append("--hosts and --hostfile both name the nodes; give one")
    if named and launcher != "ssh":
        problems.append(f"--hosts and --hostfile are of ssh, not of {launcher}; leave them out")
    if launcher == "ssh" and not named:
        problems.append("--launcher (ssh) needs --hosts or --hostfile; give one")
    if given.node_rank is not None and launcher in COORDINATED:
        problems.append(f"--node-rank is not for {launcher}, which numbers nodes; leave it out")
    if given.requeue and not slurm:
        problems.append(f"--requeue is of Slurm, not of {launcher}; use --max-restarts")
    if given.max_restarts and launcher == "slurm-ranks":
        problems.append("--max-restarts is torchrun's, which slurm-ranks has not; use --requeue")
    if slurm and "SLURM_JOB_ID" not in environment:
        text = "runs inside an allocation (SLURM_JOB_ID is unset); use sbatch or salloc"
        problems.append(f"--launcher ({launcher}) {text}")
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if slurm and is_task(environment):
        problems.append(f"--launcher ({launcher}) calls srun and is a task of srun; call it once")
    elif (
        launcher == "torchrun"
        and is_task(environment)
        and tasks != environment.get("SLURM_STEP_NUM_NODES", "1")
    ):
        nodes = environment.get("SLURM_STEP_NUM_NODES", "1")
        text = "srun starts launch.py once a node (--ntasks-per-node 1), or is left out"
        problems.append(
            f"SLURM_STEP_NUM_TASKS ({tasks}) is not the number of nodes ({nodes}); {text}"
        )
    if launcher == "sky" and "SKYPILOT_NODE_IPS" not in environment:
        problems.append("SKYPILOT_NODE_IPS is unset; --launcher sky is for the run of a sky task")
    # Kubeflow's PyTorchJob numbers nodes so as well.
    of_node = (values.get("node_rank"), values.get("nodes"))
    is_node = (environment.get("RANK"), environment.get("WORLD_SIZE")) == of_node
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "OMPI_COMM_WORLD_RANK"):
        if name in environment and not (name == "RANK" and is_node):
            text = "is set: another launcher has started this process; call launch.py instead of it"
            problems.append(f"{name} ({environment[name]}) {text}")
            break
    return problems


def tools(launcher: str, given: argparse.Namespace) -> list[str]:
    """Programs that must be there."""
    slurm = ["srun", "scontrol", "scancel", "squeue"]
    of = {"ssh": shlex.split(given.ssh)[:1], "slurm": slurm, "slurm-ranks": slurm}
    # That of another machine is looked for there.
    return [*of.get(launcher, []), *([] if launcher == "ssh" else [given.python])]


def gpus_here() -> int | None:
    """GPUs of this machine; None: it has none, or they cannot be counted."""
    if not shutil.which("nvidia-smi"):
        return None
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) or None


def default_port(launcher: str, nodes: int, environment: dict[str, str]) -> int:
    """Where nobody names one."""
    number = environment.get("SLURM_JOB_ID", "")
    if launcher in SLURM and number.isdecimal():
        # Jobs beside each other on a node do not meet; below those that the system hands out.
        return 12_000 + int(number) * 2 % 8_000
    if nodes > 1:
        return DEFAULT_PORT
    while True:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        if port < 65_535 and not port_problems("127.0.0.1", port):
            return port


def port_problems(address: str, port: int) -> list[str]:
    """In use, or of no address; of another machine nothing can be said."""
    problems = []
    for number in (port, port + 1):
        try:
            family, kind, _, _, place = socket.getaddrinfo(
                address, number, socket.AF_UNSPEC, socket.SOCK_STREAM
            )[0]
        except (OSError, OverflowError) as error:
            return [f"{address}:{port} is not an address ({error}); give --master-addr, --port"]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(place)
                probe.listen()
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    problems.append(f"--port ({number}) is in use on {address}; give another")
    return problems


# ------------------------------------------------------------------------------- what is started


def agent(job: Job, program: tuple[str, ...], port: int, rank: int | None, host: str) -> list[str]:
    """One node's command: torchrun for its ranks; ``rank`` None: srun says it."""
    given = job.given
    command = [given.python, "-m", "grove_megatron.agent"]
    command += ["--grace-seconds", f"{given.grace_seconds:g}"]
    if job.launcher == "ssh":
        command.append("--end-with-stdin")
    command += ["--nnodes", str(job.nodes), "--nproc-per-node", str(job.gpus)]
    number = Raw('"$SLURM_NODEID"') if rank is None else str(rank)
    if given.max_restarts and program == job.program:
        command += ["--max-restarts", str(given.max_restarts)]
        if job.nodes > 1:
            # Agents that find each other again; the other rendezvous knows no second attempt.
            first = (
                Raw("is_host=$((SLURM_NODEID==0))") if rank is None else f"is_host={int(not rank)}"
            )
            command += ["--rdzv-backend", "c10d", "--rdzv-id", f"launch-{port}"]
            command += ["--rdzv-endpoint", f"{job.master_addr}:{port}", "--rdzv-conf", first]
            return [*command, "--local-addr", host, *program]
    command += ["--node-rank", number, "--master-addr", job.master_addr]
    return [*command, "--master-port", str(port), *program]


def commands(job: Job, program: tuple[str, ...], port: int, step: str) -> list[list[str]]:
    """What launch.py starts: one command, or one for each host; to be shown, one for each node."""
    given, python = job.given, job.given.python
    if job.launcher == "ssh":
        made = []
        for rank, host in enumerate(job.hosts):
            name = host.rpartition("@")[2]
            made.append(over_ssh(job, host, agent(job, program, port, rank, name)))
        return made
    if job.launcher not in COORDINATED:
        made = []
        for rank in range(job.nodes) if job.node_rank is None else [job.node_rank]:
            here = f"node{rank}" if job.node_rank is None else None
            own = job.hosts[rank] if job.hosts else here or address_towards(job.master_addr, port)
            made.append(with_environment(job, agent(job, program, port, rank, own)))
        return made
    ranks = job.launcher == "slurm-ranks"
    tasks = job.gpus if ranks else 1
    srun = ["srun", "--job-name", step, "--nodes", str(job.nodes), "--ntasks-per-node", str(tasks)]
    srun += ["--ntasks", str(job.nodes * tasks), "--kill-on-bad-exit=1"]
    srun.append("--export=ALL")  # sbatch --export=NONE has srun pass nothing on, --env neither
    if "SLURM_STEP_ID" in os.environ:
        srun.append("--overlap")  # with the shell of srun --pty, which has all there is
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
        # Since Slurm 22.05, srun does not take it by itself; and it is of the job's tasks.
        before = re.match(r"\d+", os.environ.get("SLURM_TASKS_PER_NODE", ""))
        share = int(cpus) * int(before[0] if before else 1) // tasks
        srun += ["--cpus-per-task", str(max(1, share))]
    if given.logs:
        place = "%t" if ranks else "%n"
        phase = ("rank" if ranks else "node") if program == job.program else "machines"
        srun += ["--output", os.path.join(given.logs, f"{phase}{place}.log")]
        srun += ["--open-mode", "append"]
    if ranks:
        meet = {"MASTER_ADDR": job.master_addr, "MASTER_PORT": str(port)}
        named = replace(job, environment=meet | job.environment)
        return [with_environment(named, [*srun, python, *program])]
    node = shell(agent(job, program, port, None, Raw('"$SLURMD_NODENAME"')))
    return [with_environment(job, [*srun, "bash", "-c", f"exec {node}"])]


def with_environment(job: Job, command: list[str]) -> list[str]:
    words = [word for name in job.unset for word in ("-u", name)]
    words += [f"{name}={value}" for name, value in job.environment.items()]
    return ["env", *words, *command] if words else command


def over_ssh(job: Job, host: str, command: list[str]) -> list[str]:
    """``command``, in a shell of ``host``."""
    there = shell(with_environment(job, command))
    line = f"cd {shlex.quote(os.getcwd())} && exec {there}"
    return [*shlex.split(job.given.ssh), host, line]


def shell(command: list[str]) -> str:
    """To be pasted into a shell."""
    return " ".join(word if isinstance(word, Raw) else shlex.quote(word) for word in command)


def address_towards(host: str, port: int) -> str:
    """This machine's, as others of that network see it; nothing is sent."""
    with contextlib.suppress(OSError):
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    return socket.gethostname()


def doctor(job: Job) -> list[str]:
    """``grove doctor`` of the whole job, by the Python of the nodes."""
    command = [job.given.python, "-m", "grove_megatron", "doctor"]
    command += ["--device", job.device] if job.device else []
    command += ["torchrun", "--nnodes", str(job.nodes), "--nproc-per-node", str(job.gpus)]
    command += job.program
    if job.launcher == "ssh":
        return over_ssh(job, job.hosts[0], command)
    return with_environment(job, command)


def machines(job: Job) -> tuple[str, ...]:
    """The look at the machines, which is told the whole job."""
    return ("-m", "grove_megatron.machines", *job.program, *job.given.machines)


# ------------------------------------------------------------------------------------ how it ends


class Signals:
    """What was asked of this process; looked at between waits."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.limit = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._heard)

    def _heard(self, number: int, frame: Any) -> None:
        # Slurm says with USR1 that the time is nearly up: job.sbatch asks for it.
        self.limit = self.limit or number == signal.SIGUSR1
        self.asked = self.asked or (signal.SIGTERM if number == signal.SIGUSR1 else number)


def run(job: Job, made: list[list[str]], step: str, signals: Signals, named: str = "") -> int:
    """Start all, and end all once one has failed or this process is asked to end.

    Returns:
        exit code of the one that failed first; of all, where they end well after a signal, 0;
        ``LOST`` if a host of ssh was: others may well have failed before it is known.
    """
    started = []
    for number, command in enumerate(made):
        log = None
        if named and job.given.logs and job.launcher not in SLURM:
            rank = number if job.node_rank is None else job.node_rank
            log = Path(job.given.logs, f"{named}{rank}.log")
        with log.open("ab") if log else contextlib.nullcontext() as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if job.launcher == "ssh" else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if log else None,
                # Ctrl-C is passed on from here.
                start_new_session=True,
            )
        started.append(process)
    failed = 0
    asked_at: float | None = None
    untold = started
    while None in (codes := [process.poll() for process in started]):
        failed = failed or next((code for code in codes if code), 0)
        if asked_at is None and (failed or signals.asked):
            asked_at = time.monotonic()
        if asked_at and untold:
            untold = [
                one for one in untold if one.poll() is None and not ask_to_end(job, one, step)
            ]
            if untold:  # Slurm does not know the step yet, or does not answer
                time.sleep(_ASK_SECONDS)
        if asked_at and time.monotonic() > asked_at + job.given.grace_seconds + _SPARE_SECONDS:
            for process in started:
                # srun kills its tasks at this; others get what nobody can ignore.
                srun = job.launcher in SLURM
                process.send_signal(signal.SIGTERM if srun and step else signal.SIGKILL)
            asked_at = float("inf")
        time.sleep(_LOOK_SECONDS)
    codes = [process.returncode for process in started]
    failed = failed or next((code for code in codes if code), 0)
    if job.launcher == "ssh" and failed != REFUSED and any(c == LOST or c < 0 for c in codes):
        return LOST
    return 128 - failed if failed < 0 else failed


def ask_to_end(job: Job, process: subprocess.Popen[bytes], step: str) -> bool:
    """SIGTERM for the ranks, by the way that reaches them; False: not yet."""
    if process.stdin is not None:
        process.stdin.close()
    elif step and job.launcher in SLURM:
        # Not to srun, which would kill its tasks at once.
        number = os.environ["SLURM_JOB_ID"]
        listing = ["squeue", "--noheader", "--steps", "--job", number, "--format", "%i %j"]
        shown = subprocess.run(listing, capture_output=True, text=True, check=False).stdout
        names = [line.split() for line in shown.splitlines()]
        found = [words[0] for words in names if words[1:] == [step]]
        tell = ["scancel", "--signal", "TERM", *found]
        return bool(found) and not subprocess.run(tell, check=False).returncode
    else:
        process.terminate()
    return True


def checked(job: Job, signals: Signals) -> int:
    """The command line, once, and then the machines; 0, or why not."""
    given, code = job.given, 0
    if not given.no_doctor:
        say("grove doctor")
        code = run(replace(job, launcher="here"), [doctor(job)], "", signals)
        if code == 127 and job.launcher == "ssh":
            say(f"--python ({given.python}) is not on {job.hosts[0]}; name the one of the nodes")
    if not given.no_machines and not code and signals.asked is None:
        say("the machines")
        step = f"machines-{os.getpid()}"
        code = run(job, commands(job, machines(job), job.port + 1, step), step, signals, "machines")
    # Also where both have ended well: the job is not to start.
    if signals.asked is not None:
        return 128 + signals.asked
    return REFUSED if code else 0


def coordinated(job: Job, signals: Signals) -> int:
    """The job from the one place that starts it everywhere; lost nodes are started again."""
    for attempt in range(job.given.max_restarts + 1):
        step = f"grove-{os.getpid()}"
        code = run(job, commands(job, job.program, job.port, step), step, signals, "node")
        # ssh's own code, or a signal's: an agent or its node is gone. Its ranks torchrun has
        # started again itself.
        lost = job.launcher == "ssh" and code >= 128
        if not lost or signals.asked is not None or attempt == job.given.max_restarts:
            return code
        say(
            f"a node was lost (exit code {code}); all start again, {attempt + 1} of "
            f"{job.given.max_restarts}"
        )
    raise AssertionError("the last attempt returns")


def become(job: Job) -> NoReturn:
    """The agent of this node takes the place of this process, and of its signals."""
    if job.given.logs:
        with Path(job.given.logs, f"node{job.node_rank}.log").open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    (command,) = commands(job, job.program, job.port, "")
    os.execvp(command[0], command)


def requeue(job: Job, code: int, signals: Signals) -> int:
    """Put the job back where that may help."""
    times = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    wanted = signals.limit or (code not in (0, REFUSED) and signals.asked is None)
    if not job.given.requeue or not wanted:
        return code
    if times >= job.given.requeue:
        say(f"not put back: it has been {times} times (--requeue {job.given.requeue})")
        return code
    why = "the time limit" if signals.limit else f"exit code {code}"
    say(f"{why}: put back into the queue, {times + 1} of {job.given.requeue}")
    put = subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
    if put.returncode:
        say("scontrol requeue failed; only jobs of sbatch can be put back")
    return code


def say(line: str) -> None:
    print(f"launch.py: {line}", file=sys.stderr, flush=True)


def show(job: Job) -> None:
    """What would run, as commands for a shell."""
    where = f"node {job.node_rank} of {job.nodes}"
    if job.launcher in COORDINATED:
        where = "here, each in a terminal of its own" if job.launcher == "ssh" else "here"
    elif job.node_rank is None:
        where = f"a line for each of {job.nodes} nodes"
    print(f"# {job.found}")
    if not job.given.no_doctor:
        print(f"# the command line, once\n{shell(doctor(job))}")
    if not job.given.no_machines:
        print(f"# the machines ({where})")
        for command in commands(job, machines(job), job.port + 1, "machines"):
            print(shell(command))
    print(f"# the job ({where})")
    for command in commands(job, job.program, job.port, "grove"):
        print(shell(command))


def main() -> int:
    """From the command line to the job's exit code."""
    try:
        job = plan(sys.argv[1:], dict(os.environ))
    except Refused as refused:
        count = len(refused.args)
        say(f"{count} problem{'s' if count > 1 else ''}, nothing was started:")
        for number, problem in enumerate(refused.args, 1):
            print(f"  {number}. {problem}", file=sys.stderr)
        return REFUSED
    if job.given.dry_run:
        show(job)
        return 0
    say(job.found)
    if "--save" in job.program and "--exit-signal-handler" not in job.program:
        say("SIGTERM ends the job at its last checkpoint; --exit-signal-handler saves one first")
    signals = Signals()
    if job.given.logs:
        Path(job.given.logs).mkdir(parents=True, exist_ok=True)
    code = checked(job, signals)
    if not code and job.launcher not in COORDINATED:
        become(job)
    if not code:
        code = coordinated(job, signals)
    return requeue(job, code, signals)


if __name__ == "__main__":
    sys.exit(main())
