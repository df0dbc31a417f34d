"""An item's process: its exit code and output are kept, and with its time ends all it started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grove_megatron.benchmarks.kit.child import run_child

# It and its child ignore being asked, and the child is in a session of its own.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"],
                         start_new_session=True)
print("child", child.pid, flush=True)
time.sleep(300)
"""


def exists(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("code", [0, 3])
def test_exit_code_and_output(code: int, tmp_path: Path) -> None:
    def call() -> int:
        print("from inside")
        return code

    log = tmp_path / "log"
    ended = run_child(call, log, 60)
    assert (ended.code, ended.cut_off) == (code, False)
    assert log.read_text() == "from inside\n"


def test_an_exception_is_in_the_log(tmp_path: Path) -> None:
    def call() -> int:
        raise ArithmeticError("on purpose")

    ended = run_child(call, tmp_path / "log", 60)
    assert ended.code == 1
    assert "ArithmeticError: on purpose" in (tmp_path / "log").read_text()


def test_it_is_interrupted_first(tmp_path: Path) -> None:
    def call() -> int:
        try:
            time.sleep(300)
        except KeyboardInterrupt:
            print("tidied up")
            return 7
        return 0

    ended = run_child(call, tmp_path / "log", 0.5)
    assert (ended.code, ended.cut_off) == (7, True)
    assert (tmp_path / "log").read_text() == "tidied up\n"


def test_what_ignores_that_is_killed_with_what_it_started(tmp_path: Path) -> None:
    def call() -> int:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return subprocess.run([sys.executable, "-c", STUBBORN], check=False).returncode

    log = tmp_path / "log"
    began = time.monotonic()
    ended = run_child(call, log, 2)
    assert ended.cut_off
    assert ended.code == -signal.SIGKILL
    assert time.monotonic() - began < 60
    child = int(log.read_text().split()[1])
    time.sleep(0.2)
    assert not exists(child)


def test_it_does_not_outlive_the_runner(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def call() -> int:
        print(os.getpid())
        time.sleep(300)
        return 0

    runner = os.fork()
    if runner == 0:
        run_child(call, log, 99)
        os._exit(0)
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = int(log.read_text())
    assert exists(child)
    os.kill(runner, signal.SIGKILL)
    os.waitpid(runner, 0)
    while exists(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)
