"""End a job that cannot start: every rank exits 2, rank 0 alone says why, and says it last."""

import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import NoReturn

from ..checks.problem import Problem
from ..failure.job_store import has_store, job_store, key, world
from ..printable import counted, numbered

REFUSED_EXIT_CODE = 2
# Ranks of one job start some seconds apart.
_WAIT_SECONDS = 15.0


def refuse(problems: Sequence[Problem | str]) -> NoReturn:
    """Print the list on rank 0 and exit 2 on every rank that calls this.

    The launcher ends all ranks as soon as one exits, so the others first wait until rank 0 has
    printed, and nobody lets the launcher's SIGTERM turn the exit code into another. A rank that
    waits in vain has a problem of its own node and prints it.

    Args:
        problems: of a job; a line each of what has no flags: an installation, a benchmark, weights.
    """
    rank, world_size = world()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout.flush()
    if rank == 0:
        _print(problems, "")
    if has_store() and not _rank_0_refuses(rank, world_size):
        # A problem of this node alone: rank 0 knows nothing of it.
        _print(problems, f"rank {rank}, ")
    sys.exit(REFUSED_EXIT_CODE)


def _print(problems: Sequence[Problem | str], where: str) -> None:
    said = f"grove_megatron: {where}{counted(problems)}, nothing was started:"
    print(f"\n{said}\n{numbered(problems)}", file=sys.stderr)
    sys.stderr.flush()


def _rank_0_refuses(rank: int, world_size: int) -> bool:
    """Wait until rank 0 has printed its list; False if it does not refuse."""
    import torch.distributed as dist

    timeout = timedelta(seconds=_WAIT_SECONDS)
    printed, heard = key("printed"), key("heard")
    try:
        # A rank that comes too late must not keep the others from hearing it.
        store = job_store(timeout, first={printed: ""}, everybody=False)
        if rank == 0:
            store.set(printed, "")
            # The store may live in this process; it has to outlive the questions of the others.
            store.wait([f"{heard}/{r}" for r in range(1, world_size)], timeout)
        else:
            store.wait([printed], timeout)
            store.set(f"{heard}/{rank}", "")
    except (dist.DistError, RuntimeError, StopIteration):
        return rank == 0
    return True
