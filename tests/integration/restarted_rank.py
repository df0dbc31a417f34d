"""Runs under torchrun: ranks that meet, of which one is killed in every attempt but the last.

Arguments: a folder, and the attempts. Rank 0 leaves a line in the folder for every attempt that has
added up its ranks.
"""

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from grove_megatron.failure.job_store import job_store, world


def main() -> None:
    folder, attempts = Path(sys.argv[1]), int(sys.argv[2])
    rank, world_size = world()
    done = folder / "attempts"
    attempt = len(done.read_text().split()) if done.exists() else 0
    # Every rank is late once; the file may grow while it is read, which does not matter here.
    time.sleep(1.5 * (rank == attempt % world_size))
    timeout = timedelta(seconds=60)
    # With None in its place, the second attempt or the third fails.
    store = job_store(timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
    for _ in range(2):
        total = torch.ones(())
        dist.all_reduce(total, group=dist.new_group())
        assert total == world_size
    if rank == 0:
        with done.open("a") as file:
            print(int(total), file=file)
    if attempt < attempts - 1:
        if rank == world_size - 1:
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        # As ranks wait in a collective for the one that is gone.
        dist.barrier()
    dist.barrier()


if __name__ == "__main__":
    main()
