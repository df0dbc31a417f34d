"""Runs on a rank: says where it is, meets the others, and then ends in one of several ways."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from grove_megatron.training.launchers import take_ranks

SAVING_SECONDS = 2.0
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def main(folder: Path, how: str) -> None:
    found, _, problems = take_ranks(os.environ)
    assert not problems, problems
    os.environ |= found
    rank = int(os.environ["RANK"])
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([rank])
    dist.all_reduce(total)
    attempt = len([*folder.glob(f"rank{rank}-*.json")])
    said = {name: os.environ[name] for name in NAMES}
    said |= {"sum": total.item(), "pid": os.getpid(), "node": os.environ.get("SLURMD_NODENAME")}
    said["given"] = os.environ.get("GIVEN")
    beside = folder / f"{rank}.part"
    beside.write_text(json.dumps(said))
    beside.rename(folder / f"rank{rank}-{attempt}.json")
    dist.barrier()
    {
        "end": lambda: None,
        "serve": lambda: _serve(folder, rank),
        "ignore": _ignore,
        "fail": lambda: sys.exit(7),
        "refuse": lambda: sys.exit(2),
        "lose": lambda: _lose(rank == int(os.environ["WORLD_SIZE"]) - 1, attempt),
        "lose_first": lambda: _lose(rank == 0, attempt),
    }[how]()
    dist.barrier()
    dist.destroy_process_group()


def _serve(folder: Path, rank: int) -> None:
    """As Megatron with --exit-signal-handler: save, which takes a while, and end with 0."""

    def save(*_: Any) -> None:
        time.sleep(SAVING_SECONDS)
        (folder / f"saved{rank}").touch()
        os._exit(0)

    signal.signal(signal.SIGTERM, save)
    (folder / f"serves{rank}").touch()
    while True:
        time.sleep(0.1)


def _ignore() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    time.sleep(600)


def _lose(here: bool, attempt: int) -> None:
    """At first the node of one rank ends at once, as without power."""
    if here and attempt == 0:
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
