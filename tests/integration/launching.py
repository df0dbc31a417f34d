"""Start a command as a user would and read the losses from what Megatron printed."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port

REPOSITORY = Path(__file__).resolve().parents[2]

_ITERATION = re.compile(
    r" iteration +(\d+)/ +\d+ \|.*?\| lm loss: (\S+) \|.*?\| grad norm: (\S+) \|"
)


@dataclass(frozen=True)
class Finished:
    """Exit code and everything a command printed, stdout and stderr in one."""

    code: int
    output: str


def launch(command: list[str], *, timeout: float = 900, **environment: str) -> Finished:
    """Run ``command``; on a timeout end it with its children and raise ``TimeoutExpired``.

    Args:
        command: program and arguments.
        timeout: in seconds.
        environment: variables to set beside those of the test run.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "GROVE_RUNTIME"}
    process = subprocess.Popen(
        command,
        env={
            **inherited,
            "PYTHON": sys.executable,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException:
        # torchrun gives its ranks sessions of their own: only itself can end them, so ask first.
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        raise
    return Finished(process.returncode, output)


def torchrun(*arguments: str) -> list[str]:
    """The command that runs ``arguments`` on two ranks of this machine."""
    torch_run = [sys.executable, "-m", "torch.distributed.run"]
    return [*torch_run, "--standalone", "--nproc-per-node", "2", *arguments]


@contextmanager
def two_nodes(
    *arguments: str, per_node: int = 2, restarts: int = 0
) -> Iterator[list[subprocess.Popen[str]]]:
    """Two launchers on this machine, each with some CPU ranks; ended in the end.

    Args:
        arguments: what every rank runs.
        per_node: ranks of a launcher.
        restarts: with any, the launchers find each other by themselves, as an elastic job has it.
    """
    port = free_port()
    size = ["--nnodes", "2", "--nproc-per-node", str(per_node)]
    meet = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    if restarts:
        meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
        meet += ["--max-restarts", str(restarts)]
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", *size, *meet),
                *("--node-rank", str(node), *arguments),
            ],
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "OMP_NUM_THREADS": "1",
                "GROVE_RUNTIME": "cpu",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for node in range(2)
    ]
    try:
        yield nodes
    finally:
        for node in nodes:
            if node.poll() is None:
                # It ends its ranks.
                node.terminate()
                node.wait(timeout=120)


def tiny_model() -> list[str]:
    """The flags in ``examples/tiny_model.sh``."""
    show = 'source "$0" && printf "%s\\n" "${tiny_model[@]}"'
    script = str(REPOSITORY / "examples" / "tiny_model.sh")
    shown = subprocess.run(["bash", "-c", show, script], capture_output=True, text=True, check=True)
    return shown.stdout.splitlines()


def reported_steps(output: str) -> dict[int, tuple[str, str]]:
    """Iteration -> (loss, gradient norm), as printed."""
    return {int(step): (loss, norm) for step, loss, norm in _ITERATION.findall(output)}


def processes_that_name(text: str) -> list[str]:
    """Command lines of running processes that hold ``text``."""
    # /proc and not ps, which cuts long command lines where COLUMNS is set.
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(process.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it ended in between
    return [line for line in lines if text in line]
