"""launch.py of examples/cluster, really run: agents, Slurm, ssh, and nodes that are lost."""

import contextlib
import getpass
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

from . import slurm_here, slurm_stand_in
from .flags import MODEL
from .launching import REPOSITORY, processes_that_name, reported_steps

CLUSTER = REPOSITORY / "examples" / "cluster"
PLACE = ("-m", "tests.integration.place_job")
HANGS = 600.0


def environment(**named: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "RANK"}
    return inherited | {
        "PYTHONPATH": str(REPOSITORY),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "GROVE_RUNTIME": "cpu",
        **named,
    }


@contextmanager
def launched(
    log: Path, *words: str, before: tuple[str, ...] = (), **named: str
) -> Iterator[subprocess.Popen[bytes]]:
    """launch.py without a look at the command line and the machines; ended in the end."""
    command = [*before, sys.executable, str(CLUSTER / "launch.py"), "--no-doctor", "--no-machines"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *words],
            env=environment(**named),
            cwd=REPOSITORY,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=120)


def until(true: Callable[[], Any], text: Callable[[], str] = str, seconds: float = HANGS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, text()
        time.sleep(0.1)


def places(folder: Path, attempt: int = 0) -> list[dict[str, Any]]:
    """What every rank has said, in their order."""
    found = [json.loads(file.read_text()) for file in folder.glob(f"rank*-{attempt}.json")]
    return sorted(found, key=lambda said: int(said["RANK"]))


def assert_places(said: list[dict[str, Any]], nodes: int, per_node: int) -> None:
    size = nodes * per_node
    expected = [(str(r), str(size), str(r % per_node), str(per_node)) for r in range(size)]
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    assert [tuple(one[name] for name in names) for one in said] == expected
    assert {one["sum"] for one in said} == {size * (size - 1) // 2}


# ------------------------------------------------------------------------------------- one node


@pytest.mark.parametrize(
    ("how", "code"), [("refuse", 2), ("serve", 0), ("ignore", 128 + signal.SIGTERM)]
)
def test_a_node_ends_well(how: str, code: int, tmp_path: Path) -> None:
    """A refusal stays one; after SIGTERM ranks may save, and what does not end is killed."""
    log, save_seconds = tmp_path / "log", 4.0
    # With restarts: nothing is started again after SIGTERM.
    words = ["--gpus-per-node", "2", "--grace-seconds", str(save_seconds)]
    words += ["--max-restarts", "0" if how == "refuse" else "1"]
    job = [*words, "--", *PLACE, str(tmp_path), how]
    # PET_* would have torchrun do what the command line does not say: fail, here.
    with launched(log, *job, PET_NO_PYTHON="1") as process:
        if how != "refuse":
            until(lambda: len(places(tmp_path)) == 2, log.read_text)
            until(lambda: how == "ignore" or (tmp_path / "serves1").exists(), log.read_text)
            process.terminate()
        assert process.wait(timeout=HANGS) == code, log.read_text()
    assert_places(places(tmp_path), 1, 2)
    assert len([*tmp_path.glob("saved*")]) == (2 if how == "serve" else 0)
    assert not places(tmp_path, 1)
    until(lambda: not processes_that_name(str(tmp_path)), log.read_text, 10)


# ---------------------------------------------------------------------------- agents on loopback


@pytest.mark.long
def test_four_agents_are_one_job(tmp_path: Path) -> None:
    port = str(free_port())
    words = ["--nodes", "4", "--gpus-per-node", "1", "--master-addr", "127.0.0.1", "--port", port]
    job = [*words, "--", *PLACE, str(tmp_path), "end"]
    with (
        launched(tmp_path / "log0", "--node-rank", "0", *job) as first,
        launched(tmp_path / "log1", *job, NODE_RANK="1") as second,
        launched(tmp_path / "log2", *job, PET_NODE_RANK="2") as third,
        launched(tmp_path / "log3", "--logs", str(tmp_path), "--node-rank", "3", *job) as fourth,
    ):
        codes = [node.wait(timeout=HANGS) for node in (first, second, third, fourth)]
    logs = "".join(file.read_text() for file in sorted(tmp_path.glob("log*")))
    assert codes == [0, 0, 0, 0], logs
    assert_places(places(tmp_path), 4, 1)
    assert (tmp_path / "node3.log").exists()


@pytest.mark.long
def test_after_a_lost_node_the_job_goes_on(tmp_path: Path) -> None:
    """Whoever gives the nodes ends the one that is left, and calls launch.py on both again."""
    save, port = tmp_path / "save", str(free_port())
    words = ["--nodes", "2", "--gpus-per-node", "1", "--master-addr", "127.0.0.1", "--port", port]
    model = [*MODEL, "--expert-model-parallel-size", "2", "--train-iters", "9"]
    model += ["--save", str(save), "--load", str(save), "--save-interval", "2"]
    job = [*words, "--", "-m", "tests.integration.failing_job", str(tmp_path), "1", "5"]
    job += ["kill_node", *model]
    logs = [tmp_path / f"log{number}" for number in range(4)]
    with (
        launched(logs[0], "--node-rank", "0", *job) as first,
        launched(logs[1], "--node-rank", "1", *job) as second,
    ):
        assert second.wait(timeout=HANGS) == -signal.SIGKILL, logs[1].read_text()
        first.terminate()
        assert first.wait(timeout=HANGS)
    with (
        launched(logs[2], "--node-rank", "0", *job) as first,
        launched(logs[3], "--node-rank", "1", *job) as second,
    ):
        codes = [first.wait(timeout=HANGS), second.wait(timeout=HANGS)]
    output = "".join(log.read_text() for log in logs)
    assert codes == [0, 0], output[-6000:]
    assert [*reported_steps(output)] == [*range(1, 10)], output[-6000:]
    assert "at iteration 4\n" in output
    assert not processes_that_name(str(tmp_path))


@pytest.fixture
def two_networks() -> Iterator[tuple[str, str]]:
    """Two network namespaces with 10.77.0.1 and 10.77.0.2, joined by a pair of devices."""
    names = (f"grove{os.getpid()}a", f"grove{os.getpid()}b")
    steps = [f"ip netns add {name}" for name in names]
    steps.append(f"ip link add eth0 netns {names[0]} type veth peer name eth0 netns {names[1]}")
    for number, name in enumerate(names, 1):
        steps.append(f"ip -n {name} addr add 10.77.0.{number}/24 dev eth0")
        steps += [f"ip -n {name} link set {device} up" for device in ("lo", "eth0")]
    try:
        if not shutil.which("ip"):
            pytest.skip("no ip(8) here")
        for step in steps:
            done = subprocess.run(step.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {step}: {done.stderr.strip()}")
        yield names
    finally:
        if shutil.which("ip"):
            for name in names:
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.mark.long
@pytest.mark.parametrize("restarts", ["0", "1"])
def test_two_networks(two_networks: tuple[str, str], restarts: str, tmp_path: Path) -> None:
    """The name of the machine is of neither network: ranks meet by the addresses between them."""
    words = ["--nodes", "2", "--gpus-per-node", "1", "--master-addr", "10.77.0.1"]
    words += ["--max-restarts", restarts, "--env", "GLOO_SOCKET_IFNAME=eth0"]
    job = [*words, "--", *PLACE, str(tmp_path), "end"]
    nodes = [("ip", "netns", "exec", name) for name in two_networks]
    with (
        launched(tmp_path / "log0", "--node-rank", "0", *job, before=nodes[0]) as first,
        launched(tmp_path / "log1", "--node-rank", "1", *job, before=nodes[1]) as second,
    ):
        codes = [first.wait(timeout=HANGS), second.wait(timeout=HANGS)]
    logs = (tmp_path / "log0").read_text() + (tmp_path / "log1").read_text()
    assert codes == [0, 0], logs
    assert_places(places(tmp_path), 2, 1)
    assert {one["MASTER_ADDR"] for one in places(tmp_path)} == {"10.77.0.1"}


# ---------------------------------------------------------------------------------------- Slurm


def test_a_job_of_slurm_is_put_back(tmp_path: Path) -> None:
    """By stand-ins of Slurm's commands, so that it is checked everywhere."""
    named = slurm_stand_in.install(tmp_path / "slurm")
    log, script = tmp_path / "log", str(CLUSTER / "job.sbatch")
    command = [str(tmp_path / "slurm/bin/sbatch"), "--nodes", "2", "--output", str(log), script]
    command += ["--no-doctor", "--no-machines", "--gpus-per-node", "1", "--requeue", "1"]
    command += ["--port", str(free_port())]
    command += ["--env", "GIVEN=a b", "--", *PLACE, str(tmp_path), "serve"]
    with subprocess.Popen(command, env=environment(**named), cwd=REPOSITORY) as job:
        for attempt in range(2):
            until(lambda: len([*tmp_path.glob("serves*")]) == 2 or job.poll(), log.read_text)
            assert job.poll() is None, log.read_text()
            for file in tmp_path.glob("serves*"):
                file.unlink()
            assert_places(places(tmp_path, attempt), 2, 1)
            # As Slurm does before the time limit.
            scancel = str(tmp_path / "slurm/bin/scancel")
            signalled = [scancel, "--signal", "USR1", "--batch", "1"]
            subprocess.run(signalled, env=environment(**named), check=True)
        assert job.wait(timeout=HANGS) == 0, log.read_text()
    said = [*places(tmp_path), *places(tmp_path, 1)]
    assert [one["given"] for one in said] == ["a b"] * 4
    assert [one["node"] for one in said] == ["0x7f000001", "0x7f000002"] * 2
    assert len([*tmp_path.glob("saved*")]) == 2
    assert "the time limit: put back into the queue, 1 of 1" in log.read_text()
    assert "not put back: it has been 1 times" in log.read_text()
    assert not processes_that_name(str(tmp_path))


@pytest.mark.parametrize(("how", "code"), [("refuse", 2), ("fail", 7)])
def test_ranks_of_srun(how: str, code: int, tmp_path: Path) -> None:
    """No torchrun: each task is a rank. A refusal is not put back, a failure is.

    The job is a script's, as a recipe has it.
    """
    named = slurm_stand_in.install(tmp_path / "slurm")
    recipe = tmp_path / "recipe.sh"
    job = shlex.join([*PLACE, str(tmp_path), how])
    recipe.write_text(f'exec {CLUSTER}/launch.py --gpus-per-node 1 "$@" -- {job}\n')
    log, script = tmp_path / "log", str(CLUSTER / "job.sbatch")
    command = [str(tmp_path / "slurm/bin/sbatch"), "--nodes", "2", "--output", str(log), script]
    command += [str(recipe), "--launcher", "slurm-ranks", "--requeue", "1"]
    command += ["--port", str(free_port()), "--no-doctor", "--no-machines"]
    done = subprocess.run(
        command, env=environment(**named), cwd=REPOSITORY, timeout=HANGS, check=False
    )
    assert done.returncode == code, log.read_text()
    assert_places(places(tmp_path), 2, 1)
    assert len(places(tmp_path, 1)) == (2 if how == "fail" else 0)


@pytest.fixture
def real_slurm() -> Iterator[slurm_here.Slurm]:
    if why := slurm_here.missing():
        pytest.skip(why)
    # munged wants a folder that everybody can pass, which pytest's are not.
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        Path(folder).chmod(0o755)
        with slurm_here.slurm(Path(folder), 4) as slurm:
            yield slurm


def test_the_stand_in_says_what_slurm_says(
    real_slurm: slurm_here.Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "job.sh"
    show = f"env >{tmp_path}/task$SLURM_PROCID"
    srun = f"srun --nodes 2 --ntasks 4 --ntasks-per-node 2 bash -c '{show}'"
    script.write_text(f"#!/bin/bash\nenv >{tmp_path}/batch\n{srun}\n")
    monkeypatch.chdir(tmp_path)
    options = ["--nodes", "2", "--ntasks-per-node", "1", "--overcommit", "--output", "log"]
    number = real_slurm.ask("sbatch", "--parsable", *options, str(script)).strip()
    real_slurm.wait(number, {"COMPLETED"}, 60)

    def variables(name: str) -> dict[str, str]:
        lines = (tmp_path / name).read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    batch = slurm_stand_in.job_variables(2, int(number))
    assert variables("batch").items() >= batch.items()
    # One process that must not be taken for one of two.
    assert not [name for name in variables("batch") if name.startswith("SLURM_STEP_")]
    nodelist = batch["SLURM_JOB_NODELIST"]
    for rank in range(4):
        task = slurm_stand_in.task_variables(nodelist, 2, 2, rank)
        assert variables(f"task{rank}").items() >= task.items()
    shown = real_slurm.ask("scontrol", "show", "hostnames", nodelist)
    assert shown.split() == slurm_stand_in.hosts(nodelist)


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_task_of_srun_is_said_by_the_other_node(
    victim: int, real_slurm: slurm_here.Slurm, tmp_path: Path
) -> None:
    """No torchrun: the ranks are tasks. Slurm ends the step too, and says nothing of why."""
    model = [*MODEL, "--expert-model-parallel-size", "2", "--train-iters", "100000"]
    job = [sys.executable, "-m", "grove_megatron.pretrain", *model]
    options = ["--nodes", "2", "--ntasks-per-node", "1", "--output", str(tmp_path / "log%t")]
    step = subprocess.Popen(
        ["srun", *options, *job], env=environment(**real_slurm.environment), cwd=REPOSITORY
    )
    other = tmp_path / f"log{1 - victim}"
    logs = [tmp_path / "log0", tmp_path / "log1"]

    def text() -> str:
        return "".join(log.read_text() for log in logs if log.exists())

    try:
        until(lambda: len([*reported_steps(text())]) >= 3, text)
        os.kill(_task(real_slurm, victim), signal.SIGKILL)
        until(lambda: f"grove_megatron: rank {victim} (" in other.read_text(), text, 60)
        assert "was lost: killed (SIGKILL" in other.read_text()
        assert step.wait(timeout=HANGS) != 0
    finally:
        step.kill()


def _task(slurm: slurm_here.Slurm, rank: int) -> int:
    """Process of a rank."""
    wanted = {f"SLURM_PROCID={rank}", f"SLURM_CONF={slurm.environment['SLURM_CONF']}"}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode().split("\0")
            said = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            if words[:1] == [sys.executable] and wanted <= {*said}:
                return int(process.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.long
def test_real_slurm_puts_a_job_back_and_nothing_is_lost(
    real_slurm: slurm_here.Slurm, tmp_path: Path
) -> None:
    """After the time limit's signal, and again after a node is lost."""
    save, log, last = tmp_path / "save", tmp_path / "log", 120
    model = [*MODEL, "--expert-model-parallel-size", "2", "--train-iters", str(last)]
    model += ["--save", str(save), "--load", str(save), "--save-interval", "5"]
    job = ["--gpus-per-node", "1", "--no-doctor", "--no-machines", "--requeue", "9"]
    job += ["--port", str(free_port())]
    job += ["--", "-m", "grove_megatron.pretrain", *model, "--exit-signal-handler"]
    sbatch = ["sbatch", "--parsable", "--output", str(log), "--chdir", str(REPOSITORY)]
    number = real_slurm.ask(*sbatch, str(CLUSTER / "job.sbatch"), *job, **environment()).strip()

    def steps() -> list[int]:
        return [*reported_steps(log.read_text())] if log.exists() else []

    until(lambda: len(steps()) >= 7, log.read_text)
    real_slurm.ask("scancel", "--signal", "USR1", "--batch", number)
    _begin_again(real_slurm, number, 1)
    before = steps()[-1]
    assert "put back into the queue, 1 of 9" in log.read_text()
    until(lambda: steps()[-1] >= before + 7, log.read_text)
    assert f"distributed checkpoint from {save} at iteration {before}\n" in log.read_text()
    assert before < last - 14
    _lose(real_slurm, real_slurm.nodes[1])
    _begin_again(real_slurm, number, 2)
    real_slurm.wait(number, {"COMPLETED"}, HANGS)
    assert steps() == [*range(1, last + 1)], log.read_text()[-6000:]
    # Not on the node that is gone.
    assert real_slurm.nodes[1] not in real_slurm.job(number)["NodeList"]


def _begin_again(slurm: slurm_here.Slurm, number: str, restarts: int) -> None:
    """Have a job that was put back start now: Slurm itself lets it wait two minutes."""
    slurm.wait(number, {"PENDING"}, HANGS)
    assert int(slurm.job(number)["Restarts"]) >= restarts
    # Its nodes take no credential of the second in which they revoked the last one.
    time.sleep(2.0)
    slurm.ask("scontrol", "update", f"JobId={number}", "StartTime=now")


def _lose(slurm: slurm_here.Slurm, node: str) -> None:
    """Everything on a node ends at once: slurmd, its steps and their tasks."""
    named = f"SLURMD_NODENAME={node}".encode()
    pids = {slurm.pid(node)}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if named in (process / "environ").read_bytes().split(b"\0"):
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                step = Path(f"/proc/{parent}/cmdline").read_bytes().startswith(b"slurmstepd")
                pids |= {int(process.name), *([int(parent)] if step else [])}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# ------------------------------------------------------------------------------------------ ssh


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[str]:
    """The command that reaches a server of this test on any loopback address."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if not sshd or not shutil.which("ssh"):
        pytest.skip("no OpenSSH here")
    for name in ("host", "user"):
        key = str(tmp_path / name)
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key]
        subprocess.run(command, check=True)
    port = free_port()
    options = {
        "Port": port,
        "ListenAddress": "0.0.0.0",
        "HostKey": tmp_path / "host",
        "AuthorizedKeysFile": tmp_path / "user.pub",
        "PidFile": tmp_path / "pid",
        "StrictModes": "no",
        "UsePAM": "no",
        "PermitRootLogin": "prohibit-password",
    }
    conf = tmp_path / "sshd_config"
    conf.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    made = [path for path in [Path("/run/sshd")] if os.getuid() == 0 and not path.exists()]
    for path in made:
        path.mkdir(mode=0o755)
    server = subprocess.Popen([sshd, "-D", "-e", "-f", str(conf)], stderr=subprocess.PIPE)
    words = ["ssh", "-F", "none", "-p", str(port), "-i", str(tmp_path / "user")]
    words += ["-l", getpass.getuser(), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]
    words += ["-o", f"UserKnownHostsFile={tmp_path / 'known'}"]
    try:
        for _ in range(50):
            shown = subprocess.run([*words, "127.0.0.1", "true"], capture_output=True, check=False)
            if not shown.returncode or server.poll() is not None:
                break
            time.sleep(0.1)
        if shown.returncode:
            pytest.skip(f"sshd does not serve here: {shown.stderr.decode().strip()}")
        yield " ".join(words)
    finally:
        server.terminate()
        server.wait(timeout=30)
        for path in made:
            path.rmdir()


@pytest.mark.long
def test_hosts_by_ssh(ssh: str, tmp_path: Path) -> None:
    """A node that is lost has all start again; SIGTERM here reaches every rank."""
    hosts = tmp_path / "hosts"
    hosts.write_text("# two addresses of one machine\n127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    for name in ("lose", "lose_first", "serve"):
        (tmp_path / name).mkdir()
    words = ["--hostfile", str(hosts), "--gpus-per-node", "1", "--ssh", ssh, "--max-restarts", "1"]
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        words += ["--env", f"{name}={environment()[name]}"]
    words += ["--logs", str(tmp_path), "--port", str(free_port()), "--", *PLACE]
    log = tmp_path / "log"

    def logs() -> str:
        return "".join(file.read_text() for file in sorted(tmp_path.glob("*log")))

    for how in ("lose", "lose_first"):
        with launched(log, *words, str(tmp_path / how), how) as process:
            assert process.wait(timeout=HANGS) == 0, logs()
        for attempt in range(2):
            assert_places(places(tmp_path / how, attempt), 2, 1)
        assert "a node was lost" in log.read_text()
    with launched(log, *words, str(tmp_path / "serve"), "serve") as process:
        until(lambda: len([*(tmp_path / "serve").glob("serves*")]) == 2, logs)
        process.terminate()
        assert process.wait(timeout=HANGS) == 0, logs()
    assert len([*(tmp_path / "serve").glob("saved*")]) == 2
    # And the end of launch.py itself, without a word.
    for file in (tmp_path / "serve").iterdir():
        file.unlink()
    with launched(log, *words, str(tmp_path / "serve"), "serve") as process:
        until(lambda: len([*(tmp_path / "serve").glob("serves*")]) == 2, logs)
        process.kill()
        process.wait()
        until(lambda: len([*(tmp_path / "serve").glob("saved*")]) == 2, logs, 60)
    until(lambda: not processes_that_name(str(tmp_path / "serve")), logs, 60)
