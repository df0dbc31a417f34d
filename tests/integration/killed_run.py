"""Runs on a rank: a recorded run in which the whole job is killed while it saves."""

import builtins
import itertools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.integration.recorded_run import train

SECONDS = "seconds_of_saves"


def train_and_be_killed(folder: str, argv: list[str], save: int, when: float | str) -> None:
    """Recorded training that dies in its ``save``-th save.

    Args:
        folder: for the results; the ranks leave their process numbers here.
        argv: flags of a run that saves.
        save: the save to die in, from 1; 0 for none.
        when: how long after its begin, in seconds, and at its end at the latest; or how a file's
            name begins: when it has just been opened to be written, and so is empty.
    """
    from megatron.training import training

    pids = Path(folder) / "pids"
    pids.mkdir(exist_ok=True)
    (pids / f"{os.environ['RANK']}-{os.getpid()}").touch()
    original = training.save_checkpoint
    count = itertools.count(1)

    def save_checkpoint(*args: Any, **named: Any) -> None:
        ours = next(count) == save and os.environ["RANK"] == "0"
        if ours and isinstance(when, str):
            _kill_when_emptied(when, pids)
        elif ours:
            threading.Thread(target=_kill_after, args=(float(when), pids), daemon=True).start()
        begin = time.monotonic()
        original(*args, **named)
        if ours:
            _kill(pids)
        with (Path(folder) / SECONDS).open("a") as seconds:
            seconds.write(f"{time.monotonic() - begin}\n")

    training.save_checkpoint = save_checkpoint
    train(folder, argv)


def _kill_after(seconds: float, pids: Path) -> None:
    time.sleep(seconds)
    _kill(pids)


def _kill_when_emptied(name: str, pids: Path) -> None:
    original = builtins.open

    def open_and_die(path: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
        file = original(path, mode, *args, **named)
        if "w" in mode and os.path.basename(str(path)).startswith(name):
            _kill(pids)
        return file

    builtins.open = open_and_die


def _kill(pids: Path) -> None:
    """End the launcher if there is one, and every rank with its children, without warning."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        os.kill(os.getppid(), signal.SIGKILL)
    ranks = [int(path.name.split("-")[1]) for path in pids.iterdir()]
    # Every rank leads a process group; this one's own is the last.
    for pid in sorted(ranks, key=lambda pid: pid == os.getpgid(0)):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    folder, save, when, *argv = sys.argv[1:]
    train_and_be_killed(folder, argv, int(save), float(when))
