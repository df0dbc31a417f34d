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
LAUNCHERS = ("torchrun", "slurm", "slurm-ranks", "sky", "ssh")
COORDINATED = ("slurm", "slurm-ranks", "ssh")
"""Called once; the others are called once on every node."""
DEFAULT_PORT = 29500
REQUEUES = 5
_LOOK_SECONDS = 0.2
# What the agent of a node needs to end beyond the grace time of its ranks.
_SPARE_SECONDS = 20.0

# Whoever gives the nodes says the same thing under a name of his own.
VARIABLES = {
    "sky": {
        "nodes": ("SKYPILOT_NUM_NODES",),
        "node_rank": ("SKYPILOT_NODE_RANK",),
        "gpus": ("SKYPILOT_NUM_GPUS_PER_NODE",),
    },
    "slurm": {"nodes": ("SLURM_JOB_NUM_NODES",), "gpus": ("SLURM_GPUS_ON_NODE",)},
    "slurm-ranks": {"nodes": ("SLURM_JOB_NUM_NODES",), "gpus": ("SLURM_GPUS_ON_NODE",)},
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
    found: str = ""

    @property
    def flags(self) -> tuple[str, ...]:
        """Of the program, without its name, and the script's that grove_megatron.run runs."""
        return self.program[3:] if self.program[1] == "grove_megatron.run" else self.program[2:]


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
    add("--dry-run", action="store_true", help="print what each node runs, and start nothing")
    add("--no-doctor", action="store_true", help="do not check the command line first")
    add("--no-machines", action="store_true", help="do not look at the machines first")
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
    add("--logs", metavar="DIR", help="one file a node (slurm-ranks: a rank)")
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
    if given.hosts or given.hostfile:
        return "ssh", "--hosts" if given.hosts else "--hostfile"
    if "SLURM_JOB_ID" in environment and "SLURM_STEP_NUM_TASKS" not in environment:
        return "slurm", f"SLURM_JOB_ID ({environment['SLURM_JOB_ID']})"
    if "SLURM_STEP_NUM_TASKS" in environment:
        return "torchrun", "launch.py is a task of srun (SLURM_STEP_NUM_TASKS)"
    for name in VARIABLES["torchrun"]["nodes"]:
        if name in environment:
            return "torchrun", name
    return "torchrun", "no variable of another launcher"


def values_of(
    launcher: str, given: argparse.Namespace, environment: dict[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Number of nodes and so on, as options and variables have it; who says otherwise."""
    sources = [VARIABLES[launcher], VARIABLES["all"]]
    if launcher != "torchrun":
        sources.append(VARIABLES["torchrun"])
    elif "SLURM_STEP_NUM_TASKS" in environment:
        sources.insert(0, VARIABLES["srun"])
    found: dict[str, str] = {}
    problems = []
    for key, option in OPTIONS.items():
        said = [(option, getattr(given, key))] if getattr(given, key) is not None else []
        names = [name for source in sources for name in source.get(key, ())]
        said += [(name, environment[name]) for name in names if environment.get(name)]
        # --nproc-per-node gpu, auto and --nnodes 1:4 are torchrun's to know.
        said = [
            (name, str(value))
            for name, value in said
            if key == "master_addr" or str(value).isdecimal() or name == option
        ]
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


def cpu(given: argparse.Namespace, environment: dict[str, str]) -> bool:
    """Will the ranks run without GPUs?"""
    return "GROVE_RUNTIME=cpu" in given.env or environment.get("GROVE_RUNTIME") == "cpu"


def hosts_of(
    launcher: str, given: argparse.Namespace, environment: dict[str, str]
) -> tuple[list[str], list[str]]:
    """The nodes by name in the order of their ranks, as far as the launcher has names."""
    if launcher == "sky":
        return environment.get("SKYPILOT_NODE_IPS", "").split(), []
    if launcher in ("slurm", "slurm-ranks"):
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
        return [host for host in (given.hosts or "").split(",") if host], []
    try:
        lines = Path(given.hostfile).read_text().splitlines()
    except OSError as error:
        return [], [f"--hostfile ({given.hostfile}) cannot be read ({error}); correct it"]
    words = [line.partition("#")[0].split() for line in lines]
    rows = [row for row in words if row]
    problems = []
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
    problems += contradictions + of_hosts + misplaced(launcher, given, environment)
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
    rank = int(values["node_rank"]) if "node_rank" in values else None
    if launcher not in COORDINATED:
        if rank is None and nodes == 1:
            rank = 0
        if rank is None or not 0 <= rank < nodes:
            text = "is needed" if rank is None else f"({rank}) is not below --nodes ({nodes})"
            problems.append(
                f"--node-rank {text}; launch.py is called on every node: 0 on the first"
            )
    first = hosts[0].rpartition("@")[2] if hosts else None
    address = values.get("master_addr", first or ("127.0.0.1" if nodes == 1 else ""))
    if not address:
        problems.append("--master-addr is needed; give the first node's name or address")
    port = int(values["port"]) if "port" in values else default_port(launcher, nodes, environment)
    if address and not given.dry_run and not (launcher not in COORDINATED and rank):
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
        found=f"{launcher} ({why}): {nodes} nodes{' (' + ','.join(hosts) + ')' if hosts else ''} x "
        f"{gpus} ranks, meeting at {address}:{port}",
    )


def misplaced(launcher: str, given: argparse.Namespace, environment: dict[str, str]) -> list[str]:
    """Options and variables that do not go with the launcher."""
    problems = []
    slurm = launcher in ("slurm", "slurm-ranks")
    if given.hosts and given.hostfile:
        problems.append("--hosts and --hostfile both name the nodes; give one")
    if (given.hosts or given.hostfile) and launcher != "ssh":
        problems.append(f"--hosts and --hostfile are of ssh, not of {launcher}; leave them out")
    if launcher == "ssh" and not (given.hosts or given.hostfile):
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
    if slurm and "SLURM_STEP_NUM_TASKS" in environment:
        problems.append(f"--launcher ({launcher}) calls srun and is a task of srun; call it once")
    elif launcher == "torchrun" and tasks != environment.get("SLURM_STEP_NUM_NODES", "1"):
        nodes = environment.get("SLURM_STEP_NUM_NODES", "1")
        text = "srun starts launch.py once a node (--ntasks-per-node 1), or is left out"
        problems.append(
            f"SLURM_STEP_NUM_TASKS ({tasks}) is not the number of nodes ({nodes}); {text}"
        )
    if launcher == "sky" and "SKYPILOT_NODE_IPS" not in environment:
        problems.append("SKYPILOT_NODE_IPS is unset; --launcher sky is for the run of a sky task")
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "OMPI_COMM_WORLD_RANK"):
        if name in environment:
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
    if launcher in ("slurm", "slurm-ranks") and number.isdecimal():
        # Jobs beside each other on a node do not meet; below those that the system hands out.
        return 12_000 + int(number) * 2 % 8_000
    if nodes > 1:
        return DEFAULT_PORT
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1]) - 1


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
                if error.errno in (98, 48):  # EADDRINUSE, of Linux and macOS
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
    """What launch.py starts: one command, or one for each host."""
    given, python = job.given, job.given.python
    if job.launcher == "ssh":
        made = []
        for rank, host in enumerate(job.hosts):
            name = host.rpartition("@")[2]
            there = shell(with_environment(job, agent(job, program, port, rank, name)))
            line = f"cd {shlex.quote(os.getcwd())} && exec {there}"
            made.append([*shlex.split(given.ssh), host, line])
        return made
    if job.launcher not in COORDINATED:
        rank = job.node_rank
        assert rank is not None
        own = job.hosts[rank] if job.hosts else address_towards(job.master_addr, port)
        return [with_environment(job, agent(job, program, port, rank, own))]
    ranks = job.launcher == "slurm-ranks"
    tasks = job.gpus if ranks else 1
    srun = ["srun", "--job-name", step, "--nodes", str(job.nodes), "--ntasks-per-node", str(tasks)]
    srun += ["--ntasks", str(job.nodes * tasks), "--kill-on-bad-exit=1"]
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
        srun += ["--cpus-per-task", cpus]  # since Slurm 22.05, srun does not take it by itself
    if given.logs:
        srun += ["--output", os.path.join(given.logs, f"{'rank%t' if ranks else 'node%n'}.log")]
    if ranks:
        meet = {"MASTER_ADDR": job.master_addr, "MASTER_PORT": str(port)}
        named = replace(job, environment=meet | job.environment)
        return [with_environment(named, [*srun, python, *program])]
    node = shell(agent(job, program, port, None, Raw('"$SLURMD_NODENAME"')))
    return [with_environment(job, [*srun, "bash", "-c", f"exec {node}"])]


def with_environment(job: Job, command: list[str]) -> list[str]:
    pairs = [f"{name}={value}" for name, value in job.environment.items()]
    return ["env", *pairs, *command] if pairs else command


def shell(command: list[str]) -> str:
    """To be pasted into a shell."""
    return " ".join(word if isinstance(word, Raw) else shlex.quote(word) for word in command)


def address_towards(host: str, port: int) -> str:
    """This machine's, as others of that network see it; nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return str(probe.getsockname()[0])
    return socket.gethostname()


def doctor(job: Job) -> list[str]:
    """``grove doctor`` of the whole job."""
    command = [job.given.python, "-m", "grove_megatron", "doctor", "torchrun"]
    command += ["--nnodes", str(job.nodes), "--nproc-per-node", str(job.gpus), *job.program]
    return with_environment(job, command)


def machines(job: Job) -> tuple[str, ...]:
    return ("-m", "grove_megatron.machines", *job.flags)


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
        exit code of the one that failed first; of all, where they end well after a signal, 0.
    """
    started = []
    for number, command in enumerate(made):
        log = None
        if named and job.given.logs and job.launcher not in ("slurm", "slurm-ranks"):
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
    while None in (codes := [process.poll() for process in started]):
        failed = failed or next((code for code in codes if code), 0)
        if asked_at is None and (failed or signals.asked):
            asked_at = time.monotonic()
            for process in started:
                if process.poll() is None:
                    ask_to_end(job, process, step)
        if asked_at and time.monotonic() > asked_at + job.given.grace_seconds + _SPARE_SECONDS:
            for process in started:
                # srun kills its tasks at this; others get what nobody can ignore.
                srun = job.launcher in ("slurm", "slurm-ranks")
                process.send_signal(signal.SIGTERM if srun and step else signal.SIGKILL)
            asked_at = float("inf")
        time.sleep(_LOOK_SECONDS)
    failed = failed or next((process.returncode for process in started if process.returncode), 0)
    return 128 - failed if failed < 0 else failed


def ask_to_end(job: Job, process: subprocess.Popen[bytes], step: str) -> None:
    """SIGTERM for the ranks, by the way that reaches them."""
    if process.stdin is not None:
        process.stdin.close()
    elif step and job.launcher in ("slurm", "slurm-ranks"):
        # Not to srun, which would kill its tasks at once.
        number = os.environ["SLURM_JOB_ID"]
        listing = ["squeue", "--noheader", "--steps", "--job", number, "--format", "%i %j"]
        shown = subprocess.run(listing, capture_output=True, text=True, check=False).stdout
        names = [line.split() for line in shown.splitlines()]
        for found in (words[0] for words in names if words[1:] == [step]):
            subprocess.run(["scancel", "--signal", "TERM", found], check=False)
    else:
        process.terminate()


def checked(job: Job, signals: Signals) -> int:
    """The command line, once, and then the machines; 0, or why not."""
    given = job.given
    if not given.no_doctor:
        say("grove doctor")
        code = run(replace(job, launcher="here"), [doctor(job)], "", signals)
        if code:
            return REFUSED if signals.asked is None else code
    if not given.no_machines:
        say("the machines")
        step = f"machines-{os.getpid()}"
        code = run(job, commands(job, machines(job), job.port + 1, step), step, signals, "machines")
        if code:
            return REFUSED if signals.asked is None else code
    return 0


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
    """Exactly what would run."""
    where = {"ssh": "here, for each node", "slurm": "here", "slurm-ranks": "here"}.get(
        job.launcher, f"node {job.node_rank} of {job.nodes}"
    )
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
    if "--save" in job.flags and "--exit-signal-handler" not in job.flags:
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
