"""The command lines of examples/cluster/launch.py, and what it refuses."""

import importlib.util
import os
import shlex
import signal
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[3] / "examples" / "cluster" / "launch.py"
JOB = ["--", "-m", "grove_megatron.pretrain", "--split", "9 1"]
SKY = {
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
}
SLURM = {
    "SLURM_JOB_ID": "42",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "0x7f[000001-000002]",
    "SLURM_GPUS_ON_NODE": "4",
}


@pytest.fixture(scope="module")
def launch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cluster_launch", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's and ssh's commands can be found; scontrol knows two nodes."""
    for name in ("srun", "scontrol", "scancel", "squeue", "ssh"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\nprintf '0x7f000001\\n0x7f000002\\n'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_TASKS_PER_NODE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)


def commands(launch: ModuleType, words: list[str], environment: dict[str, str]) -> list[list[str]]:
    job = launch.plan([*words, "--dry-run", *JOB], environment)
    return list(launch.commands(job, job.program, job.port, "grove"))


def refused(launch: ModuleType, words: list[str], environment: dict[str, str]) -> str:
    with pytest.raises(launch.Refused) as raised:
        launch.plan(words, environment)
    return "\n".join(raised.value.args)


AGENT = [sys.executable, "-m", "grove_megatron.agent", "--grace-seconds", "60"]
PROGRAM = ["-m", "grove_megatron.pretrain", "--split", "9 1"]


def test_sky(launch: ModuleType) -> None:
    (command,) = commands(launch, ["--env", "NCCL_DEBUG=INFO"], SKY)
    size = ["--nnodes", "2", "--nproc-per-node", "8", "--node-rank", "1"]
    meet = ["--master-addr", "10.0.0.1", "--master-port", "29500"]
    assert command == ["env", "NCCL_DEBUG=INFO", *AGENT, *size, *meet, *PROGRAM]
    (again,) = commands(launch, ["--max-restarts", "3"], SKY)
    assert " ".join(again).endswith(
        "--nnodes 2 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d --rdzv-id launch-29500 "
        "--rdzv-endpoint 10.0.0.1:29500 --rdzv-conf is_host=0 --local-addr 10.0.0.2 "
        "-m grove_megatron.pretrain --split 9 1"
    )


@pytest.mark.parametrize("prefix", ["", "PET_"])
def test_torchrun_by_variables(launch: ModuleType, prefix: str) -> None:
    named = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "5000"}
    given = {prefix + name: value for name, value in named.items()}
    (command,) = commands(launch, ["--gpus-per-node", "4"], given)
    meet = ["--node-rank", "1", "--master-addr", "127.0.0.1", "--master-port", "5000"]
    assert command == [*AGENT, "--nnodes", "2", "--nproc-per-node", "4", *meet, *PROGRAM]


def test_ssh(launch: ModuleType) -> None:
    words = ["--hosts", "me@127.0.0.1, 127.0.0.2,", "--gpus-per-node", "8", "--env", "A=b c"]
    first, second = commands(launch, words, {})
    assert first[:-1] == shlex.split("ssh -o BatchMode=yes -o ServerAliveInterval=15 me@127.0.0.1")
    # What the shell there makes of it.
    there = shlex.split(second[-1])
    assert there[:5] == ["cd", str(Path.cwd()), "&&", "exec", "env"]
    size = ["--nnodes", "2", "--nproc-per-node", "8", "--node-rank", "1"]
    meet = ["--master-addr", "127.0.0.1", "--master-port", "29500"]
    assert there[5:] == ["A=b c", *AGENT, "--end-with-stdin", *size, *meet, *PROGRAM]
    # The Python is that of the hosts, and GROVE_RUNTIME of this machine is not theirs.
    for more, device in (([], []), (["--env", "GROVE_RUNTIME=cpu"], ["--device", "cpu"])):
        environment = {"GROVE_RUNTIME": "cuda"}
        job = launch.plan([*words, *more, "--dry-run", "--python", "/there", *JOB], environment)
        command = launch.doctor(job)
        assert command[:-1] == first[:-1]
        doctor = ["/there", "-m", "grove_megatron", "doctor", *device, "torchrun", *size[:4]]
        assert shlex.split(command[-1])[-len(doctor + PROGRAM) :] == doctor + PROGRAM


def test_slurm(launch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    (command,) = commands(launch, ["--logs", "here"], SLURM)
    assert shlex.join(command[:-1]) == (
        "srun --job-name grove --nodes 2 --ntasks-per-node 1 --ntasks 2 --kill-on-bad-exit=1 "
        "--export=ALL --cpus-per-task 12 --output here/node%n.log --open-mode append bash -c"
    )
    job = launch.plan(["--logs", "here", *JOB], SLURM)
    (look,) = launch.commands(job, launch.machines(job), job.port + 1, "machines")
    assert look[look.index("--output") + 1] == "here/machines%n.log"
    # The shell may be on a login node without a GPU.
    assert launch.doctor(job)[4:6] == ["--device", "cuda"]
    job = launch.plan(JOB, SLURM | {"GROVE_RUNTIME": "cpu"})
    assert launch.doctor(job)[4:6] == ["--device", "cpu"]
    assert command[-1] == (
        f'exec {shlex.join(AGENT)} --nnodes 2 --nproc-per-node 4 --node-rank "$SLURM_NODEID" '
        "--master-addr 0x7f000001 --master-port 12084 -m grove_megatron.pretrain --split '9 1'"
    )
    (again,) = commands(launch, ["--max-restarts", "1"], SLURM)
    assert '--rdzv-conf is_host=$((SLURM_NODEID==0)) --local-addr "$SLURMD_NODENAME"' in again[-1]
    (ranks,) = commands(launch, ["--launcher", "slurm-ranks"], SLURM)
    assert ranks[:3] == ["env", "MASTER_ADDR=0x7f000001", "MASTER_PORT=12084"]
    assert ranks[ranks.index("--ntasks-per-node") + 1] == "4"
    assert ranks[ranks.index("--ntasks") + 1] == "8"
    # The CPUs of a node, for four in place of one, of which the job may have asked for two.
    assert ranks[ranks.index("--cpus-per-task") + 1] == "3"
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", "2(x2)")
    (ranks,) = commands(launch, ["--launcher", "slurm-ranks"], SLURM)
    assert ranks[ranks.index("--cpus-per-task") + 1] == "6"
    assert ranks[-5:] == [sys.executable, *PROGRAM]


def test_a_task_of_srun_is_a_node(launch: ModuleType) -> None:
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1"}
    words = ["--gpus-per-node", "1", "--master-addr", "127.0.0.1"]
    (command,) = commands(launch, words, SLURM | step)
    assert command[command.index("--node-rank") + 1] == "1"
    said = refused(launch, [*words, *JOB], SLURM | step | {"SLURM_STEP_NUM_TASKS": "8"})
    assert said == (
        "SLURM_STEP_NUM_TASKS (8) is not the number of nodes (2); srun starts launch.py once a "
        "node (--ntasks-per-node 1), or is left out"
    )


# Of the shell of salloc with LaunchParameters=use_interactive_step, and of srun --pty on one node;
# by Slurm 22.05.
SHELL = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_PTY_PORT": "45245"}


@pytest.mark.parametrize(("step", "terminal"), [("4294967290", False), ("0", True)])
@pytest.mark.parametrize("words", [[], ["--launcher", "slurm"], ["--nodes", "2"]])
def test_a_shell_in_a_step_is_no_task(
    launch: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    terminal: bool,
    words: list[str],
) -> None:
    monkeypatch.setattr(launch.os, "isatty", lambda _: terminal)
    monkeypatch.setenv("SLURM_STEP_ID", step)
    environment = SLURM | SHELL | {"SLURM_STEP_ID": step}
    (command,) = commands(launch, words, environment)
    assert command[command.index("--nodes") + 1] == "2"
    assert "--overlap" in command


def test_a_task_out_of_such_a_shell_is_one(launch: ModuleType) -> None:
    """It has the shell's SLURM_PTY_PORT."""
    task = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1"}
    words = ["--gpus-per-node", "1", "--master-addr", "127.0.0.1"]
    (command,) = commands(launch, words, SLURM | SHELL | task | {"SLURM_STEP_ID": "1"})
    assert command[command.index("--node-rank") + 1] == "1"


def test_a_node_that_has_its_number_as_rank(launch: ModuleType) -> None:
    """By Kubeflow's PyTorchJob; the ranks of torchrun get their own."""
    named = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "gpu"}
    named |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "tcp://10.0.0.1:29500"}
    named |= {"WORLD_SIZE": "2", "RANK": "1"}
    (command,) = commands(launch, ["--gpus-per-node", "1"], named)
    assert command[:7] == ["env", "-u", "RANK", "-u", "WORLD_SIZE", *AGENT[:2]]
    for other in ({"RANK": "0"}, {"WORLD_SIZE": "4"}):
        said = refused(launch, ["--gpus-per-node", "1", *JOB], named | other)
        assert said.startswith(f"RANK ({(named | other)['RANK']}) is set: another launcher")


def test_a_dry_run_knows_all_nodes(launch: ModuleType) -> None:
    words = ["--nodes", "2", "--gpus-per-node", "1", "--max-restarts", "1"]
    for rank, command in enumerate(commands(launch, words, {})):
        place = f"is_host={1 - rank} --local-addr node{rank}"
        assert f"--rdzv-endpoint node0:29500 --rdzv-conf {place} " in shlex.join(command)
    assert rank == 1


def test_addresses_of_both_kinds(launch: ModuleType) -> None:
    assert launch.address_towards("127.0.0.1", 1) == "127.0.0.1"
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    assert launch.address_towards("::1", 1) == "::1"


def test_a_script_is_run_with_grove(launch: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "pretrain_gpt.py"
    script.touch()
    words = ["--gpus-per-node", "2", "--", str(script), "--lr", "1"]
    job = launch.plan(words, {})
    assert job.program == ("-m", "grove_megatron.run", str(script), "--lr", "1")
    assert launch.machines(job) == ("-m", "grove_megatron.machines", *job.program)
    words.insert(2, "--machines=--strict --seconds 60")
    told = launch.machines(launch.plan(words, {}))
    assert told == ("-m", "grove_megatron.machines", *job.program, "--strict", "--seconds", "60")
    assert launch.doctor(job)[2:] == [
        *("grove_megatron", "doctor", "torchrun", "--nnodes", "1", "--nproc-per-node", "2"),
        *("-m", "grove_megatron.run", str(script), "--lr", "1"),
    ]


GPUS = ["--gpus-per-node", "1"]
LOCAL = ["--hosts", "127.0.0.1,127.0.0.2", *GPUS]


@pytest.mark.parametrize(
    ("words", "environment", "problems"),
    [
        ([*LOCAL, "--nodes", "3"], {}, ["the number of nodes (3) is not that of --hosts (2: "]),
        (["--hosts", "127.0.0.1,127.0.0.1", *GPUS], {}, ["127.0.0.1 is listed 2 times"]),
        (["--nodes", "3"], SLURM, ["--nodes (3) is not SLURM_JOB_NUM_NODES (2)", "the number of"]),
        (["--gpus-per-node", "5"], SLURM, ["--gpus-per-node (5) is not SLURM_GPUS_ON_NODE (4)"]),
        ([], SKY | {"NODE_RANK": "0"}, ["SKYPILOT_NODE_RANK (1) is not NODE_RANK (0)"]),
        ([], SKY | {"SKYPILOT_NODE_IPS": "10.0.0.1"}, ["the number of nodes (2) is not that of"]),
        (["--nodes", "2", *GPUS], {}, ["--node-rank is needed", "--master-addr is needed"]),
        (
            [*GPUS, "--nodes", "2", "--node-rank", "2", "--master-addr", "127.0.0.1"],
            {},
            ["--node-rank (2) is not below --nodes (2)"],
        ),
        ([*LOCAL, "--requeue"], {}, ["--requeue is of Slurm, not of ssh"]),
        ([*LOCAL, "--node-rank", "0"], {}, ["--node-rank is not for ssh"]),
        (
            ["--launcher", "slurm-ranks", "--max-restarts", "1"],
            SLURM,
            ["--max-restarts is torchrun's"],
        ),
        (["--launcher", "ssh", *GPUS], {}, ["--launcher (ssh) needs --hosts or --hostfile"]),
        (["--launcher", "sky", *GPUS], {}, ["SKYPILOT_NODE_IPS is unset"]),
        (["--launcher", "slurm", *GPUS], {}, ["--launcher (slurm) runs inside an allocation"]),
        ([*GPUS, "--env", "x"], {}, ["--env (x) is not KEY=VALUE"]),
        ([*GPUS, "--python", "/no/python"], {}, ["/no/python is not on PATH; torchrun needs it"]),
        (GPUS, {"RANK": "0"}, ["RANK (0) is set: another launcher"]),
        ([], {}, ["--gpus-per-node is needed"]),
        ([*LOCAL, "--ssh", "no-ssh -v"], {}, ["no-ssh is not on PATH; ssh needs it"]),
        (["--hosts", "no host", *GPUS], {}, ["no host:"]),
        (["--hosts", " ,", *GPUS], {}, ["--hosts ( ,) names no host; give a,b,c"]),
        (["--hosts", "", *GPUS], {}, ["--hosts () names no host; give a,b,c"]),
        (["--hostfile", "/dev/null", *GPUS], {}, ["--hostfile (/dev/null) names no host; one a"]),
        (GPUS, {"PET_NNODES": "1:4"}, ["PET_NNODES (1:4) is not a number; correct it, or unset"]),
        (GPUS, {"NNODES": "two"}, ["NNODES (two) is not a number; correct it, or unset it"]),
        (GPUS, {"WORLD_SIZE": "16"}, ["WORLD_SIZE (16) is set, and nothing says how many nodes"]),
        ([*GPUS, "--port", "0"], {}, ["--port (0) is not in 1..65534; the next one is used too"]),
        ([*GPUS, "--port", "65535"], {}, ["--port (65535) is not in 1..65534"]),
    ],
)
def test_what_cannot_be_is_refused(
    launch: ModuleType, words: list[str], environment: dict[str, str], problems: list[str]
) -> None:
    lines = refused(launch, [*words, *JOB], environment).splitlines()
    assert [line[: len(problem)] for line, problem in zip(lines, problems, strict=True)] == problems


def test_all_at_once(launch: ModuleType, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 slots=4  # four\n\n127.0.0.1\n")
    words = ["--hostfile", str(hosts), "--gpus-per-node", "8", "--requeue", "--", "gone.py"]
    said = refused(launch, words, {}).splitlines()
    assert said[0] == "gone.py is not a file; correct it"
    assert said[1].endswith(
        "says 127.0.0.1 slots=4, and --gpus-per-node is 8; every node has the same"
    )
    assert said[2] == "--requeue is of Slurm, not of ssh; use --max-restarts"
    assert said[3] == "127.0.0.1 is listed 2 times; name every node once"
    assert len(said) == 4


def test_a_port_in_use(launch: ModuleType) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [*LOCAL, "--port", str(port), *JOB]
        assert f"--port ({port}) is in use on 127.0.0.1; give another" in refused(launch, words, {})


def program(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")


def test_a_lost_first_node_has_all_start_again(launch: ModuleType, tmp_path: Path) -> None:
    """The others fail for want of it long before ssh says that it is gone."""
    program(
        tmp_path, "ssh", f"echo $5 >>{tmp_path}/called; [ $5 = a ] || exit 1; sleep 1; exit 255"
    )
    words = ["--hosts", "a,b", *GPUS, "--max-restarts", "1", "--dry-run", *JOB]
    job = launch.plan(words, {})
    signals = type("Signals", (), {"asked": None, "limit": False})
    assert launch.coordinated(job, signals) == launch.LOST
    assert sorted((tmp_path / "called").read_text().split()) == ["a", "a", "b", "b"]
    # A refusal stays one.
    program(tmp_path, "ssh", f"echo $5 >>{tmp_path}/again; [ $5 = a ] || exit 2; sleep 1; exit 255")
    assert launch.coordinated(job, signals) == launch.REFUSED
    assert len((tmp_path / "again").read_text().split()) == 2


def test_a_signal_before_the_job_is_not_lost(launch: ModuleType, tmp_path: Path) -> None:
    """Doctor may end well in spite of it."""
    program(tmp_path, "srun", f"touch {tmp_path}/machines")
    doctor = tmp_path / "doctor"
    doctor.write_text(f"#!/bin/sh\nkill -TERM {os.getpid()}; sleep 0.5; exit 0\n")
    doctor.chmod(0o755)
    job = launch.plan(["--python", str(doctor), *JOB], SLURM)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    try:
        signals = launch.Signals()
        assert launch.checked(job, signals) == 128 + signal.SIGTERM
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert not (tmp_path / "machines").exists()


def test_a_step_that_slurm_does_not_know_yet_is_told_later(
    launch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = f"[ -e {tmp_path}/asked ] || {{ touch {tmp_path}/asked; exit 1; }}"
    program(tmp_path, "squeue", f"{first}; echo 42.0 step")
    program(tmp_path, "scancel", f"echo $* >{tmp_path}/told; kill $(cat {tmp_path}/pid)")
    program(
        tmp_path, "srun", f"echo $$ >{tmp_path}/pid; trap 'exit 0' TERM; sleep 60 & wait; exit 9"
    )
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    job = launch.plan(JOB, SLURM)
    signals = type("Signals", (), {"asked": signal.SIGTERM, "limit": False})
    assert launch.run(job, [["srun"]], "step", signals) == 0
    assert (tmp_path / "told").read_text() == "--signal TERM 42.0\n"


@pytest.mark.parametrize(
    ("code", "count", "limit", "back"),
    [
        (1, "", False, True),
        (1, "2", False, False),
        (2, "", False, False),
        (0, "", False, False),
        (0, "1", True, True),
        (143, "", False, True),
    ],
)
def test_what_is_put_back(
    launch: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    count: str,
    limit: bool,
    back: bool,
) -> None:
    job = launch.plan(["--requeue", "2", *JOB], SLURM)
    called: list[Any] = []

    def run(command: list[str], **_: Any) -> Any:
        called.append(command)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(launch.subprocess, "run", run)
    monkeypatch.setattr(launch.os, "environ", {"SLURM_JOB_ID": "42", "SLURM_RESTART_COUNT": count})
    signals = type("Signals", (), {"limit": limit, "asked": 15 if limit else None})
    assert launch.requeue(job, code, signals) == code
    assert called == ([["scontrol", "requeue", "42"]] if back else [])
