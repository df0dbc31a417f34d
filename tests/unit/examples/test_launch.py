"""The command lines of examples/cluster/launch.py, and what it refuses."""

import importlib.util
import shlex
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
    for name in ("SLURM_CPUS_PER_TASK", "GROVE_RUNTIME"):
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
    words = ["--hosts", "me@127.0.0.1,127.0.0.2", "--gpus-per-node", "8", "--env", "A=b c"]
    first, second = commands(launch, words, {})
    assert first[:-1] == shlex.split("ssh -o BatchMode=yes -o ServerAliveInterval=15 me@127.0.0.1")
    # What the shell there makes of it.
    there = shlex.split(second[-1])
    assert there[:5] == ["cd", str(Path.cwd()), "&&", "exec", "env"]
    size = ["--nnodes", "2", "--nproc-per-node", "8", "--node-rank", "1"]
    meet = ["--master-addr", "127.0.0.1", "--master-port", "29500"]
    assert there[5:] == ["A=b c", *AGENT, "--end-with-stdin", *size, *meet, *PROGRAM]


def test_slurm(launch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    (command,) = commands(launch, ["--logs", "here"], SLURM)
    assert shlex.join(command[:-1]) == (
        "srun --job-name grove --nodes 2 --ntasks-per-node 1 --ntasks 2 --kill-on-bad-exit=1 "
        "--cpus-per-task 12 --output here/node%n.log bash -c"
    )
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


def test_a_script_is_run_with_grove(launch: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "pretrain_gpt.py"
    script.touch()
    words = ["--gpus-per-node", "2", "--", str(script), "--lr", "1"]
    job = launch.plan(words, {})
    assert job.program == ("-m", "grove_megatron.run", str(script), "--lr", "1")
    assert launch.machines(job) == ("-m", "grove_megatron.machines", "--lr", "1")
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
