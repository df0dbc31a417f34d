"""End a job that cannot start: every rank exits 2, rank 0 alone says why, and says it last."""

import os
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

REFUSED_EXIT_CODE = 2
# Ranks of one job start some seconds apart.
_WAIT_SECONDS = 15.0
_PRINTED, _HEARD = "grove_megatron/printed", "grove_megatron/heard"


def refuse(problems: Sequence[str]) -> NoReturn:
    """Print the list on rank 0 and exit 2 on every rank that calls this.

    The launcher ends all ranks as soon as one exits, so the others first wait until rank 0 has
    printed, and nobody lets the launcher's SIGTERM turn the exit code into another. A rank that
    waits in vain has a problem of its own node and prints it.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout.flush()
    if rank == 0:
        _print(problems, "")
    if world_size > 1 and "MASTER_ADDR" in os.environ and not _rank_0_refuses(rank, world_size):
        # A problem of this node alone: rank 0 knows nothing of it.
        _print(problems, f"rank {rank}, ")
    sys.exit(REFUSED_EXIT_CODE)


def _print(problems: Sequence[str], where: str) -> None:
    lines = "\n".join(f"  {i}. {line}" for i, line in enumerate(problems, 1))
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    print(f"\ngrove_megatron: {where}{count}, nothing was started:\n{lines}", file=sys.stderr)
    sys.stderr.flush()


def _rank_0_refuses(rank: int, world_size: int) -> bool:
    """Wait until rank 0 has printed its list; False if it does not refuse."""
    import torch.distributed as dist

    timeout = timedelta(seconds=_WAIT_SECONDS)
    try:
        store = _store(rank, world_size, timeout)
        if rank == 0:
            store.set(_PRINTED, "")
            # The store may live in this process; it has to outlive the questions of the others.
            store.wait([f"{_HEARD}/{r}" for r in range(1, world_size)], timeout)
        else:
            store.wait([_PRINTED], timeout)
            store.set(f"{_HEARD}/{rank}", "")
    except (dist.DistError, RuntimeError, StopIteration):
        return rank == 0
    return True


def _store(rank: int, world_size: int, timeout: timedelta) -> Any:
    """The key-value store of the job: that of the process group if there is one by now."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _get_default_store
    from torch.distributed.rendezvous import rendezvous

    if dist.is_initialized():
        return _get_default_store()
    store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timeout))
    return store
