"""A real Slurm on this machine alone: munged, slurmctld and a slurmd for each virtual node.

Nodes are called by numbers of loopback addresses, ``0x7f000001`` for 127.0.0.1, which every
resolver knows: nothing of the machine is changed.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port

_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel", "squeue")

_CONF = """\
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
# A node that is lost is noticed soon, and a job that was put back starts soon.
SlurmdTimeout=10
KillWait=20
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
# More CPUs than there are.
SlurmdParameters=config_overrides
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here; empty if there can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in _PROGRAMS if not shutil.which(name, path=path)]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)})"
    # Its daemons start processes as other users, and keep to root's files.
    return "" if os.getuid() == 0 else "Slurm's daemons need root"


@dataclass(frozen=True)
class Slurm:
    """One that runs."""

    folder: Path
    nodes: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: str, **environment: str) -> str:
        """Output of one of Slurm's commands."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What ``scontrol show job`` says of it."""
        shown = self.ask("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def wait(self, number: str, states: set[str], seconds: float) -> dict[str, str]:
        """Until the job is in one of ``states``."""
        deadline = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < deadline, f"{job['JobState']} and not {states}"
            time.sleep(0.3)
        return job

    def pid(self, node: str) -> int:
        """Of its slurmd."""
        return int((self.folder / f"{node}.pid").read_text())

    def start(self, node: str) -> None:
        """The slurmd of a node."""
        conf = self.environment["SLURM_CONF"]
        subprocess.run(["/usr/sbin/slurmd", "-f", conf, "-N", node], check=True, timeout=60)


@contextmanager
def slurm(folder: Path, nodes: int) -> Iterator[Slurm]:
    """Started, with all nodes idle; all of it has ended in the end."""
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    names = tuple(f"0x7f{number:06x}" for number in range(1, nodes + 1))
    host = socket.gethostname()
    lines = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=4 "
        "RealMemory=1000 State=UNKNOWN"
        for name in names
    ]
    conf = _CONF.format(folder=folder, host=host, port=free_port(), nodes="\n".join(lines))
    (folder / "slurm.conf").write_text(conf)
    made = Slurm(folder, names)
    munged = ["/usr/sbin/munged", "--num-threads=2", f"--key-file={key}"]
    munged += [f"--socket={folder}/munge.sock", f"--pid-file={folder}/munge.pid"]
    munged += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    try:
        subprocess.run(munged, check=True, timeout=60)
        conf_file = made.environment["SLURM_CONF"]
        subprocess.run(["/usr/sbin/slurmctld", "-f", conf_file], check=True, timeout=60)
        for name in names:
            made.start(name)
        deadline = time.monotonic() + 60
        while made.ask("sinfo", "--noheader", "--format", "%t %D").strip() != f"idle {nodes}":
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()[-3000:]
            time.sleep(0.3)
        yield made
    finally:
        _end(folder)


def _end(folder: Path) -> None:
    """Every process of this Slurm."""
    if list(folder.glob("slurmctld.pid")):
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        command = ["scancel", "--user", "root"]
        subprocess.run(command, env=environment, check=False, timeout=60)
    # slurmctld before munged, which it asks.
    for file in sorted(folder.glob("*.pid"), key=lambda file: file.name == "munge.pid"):
        pid = int(file.read_text())
        try:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                os.kill(pid, 0)
                time.sleep(0.1)
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
