"""The key-value store of the job: what ranks can exchange before there is a process group."""

import os
import socket
from datetime import timedelta
from typing import Any


def world() -> tuple[int, int]:
    """This rank and the number of ranks, as the launcher says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def node() -> str:
    """What the ranks of one node have in common: torchrun's number of it, or the host."""
    return os.environ.get("GROUP_RANK") or socket.gethostname()


def has_store() -> bool:
    """Is there more than one rank, and a place to meet?"""
    return world()[1] > 1 and "MASTER_ADDR" in os.environ


def job_store(timeout: timedelta) -> Any:
    """That of the process group if there is one by now, else the launcher's or rank 0's own.

    The latter lives in rank 0's process, which keeps it: the process group, made later at the same
    address, then shares it, and nobody is connected to one that goes away.

    Raises:
        torch.distributed.DistError: nobody answers within ``timeout``.
    """
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _get_default_store
    from torch.distributed.rendezvous import rendezvous

    global _kept
    if dist.is_initialized():
        return _get_default_store()
    if _kept is None:
        _kept, _, _ = next(rendezvous("env://", *world(), timeout=timeout))
    return _kept


_kept: Any = None


def key(name: str) -> str:
    """Of this attempt: torchrun keeps its store when it starts all ranks again."""
    return f"grove_megatron/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"
