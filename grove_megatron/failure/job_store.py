"""The key-value store of the job: what ranks can exchange before there is a process group."""

import itertools
import json
import os
import socket
from argparse import Namespace
from collections.abc import Callable, Mapping
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


def job_store(
    timeout: timedelta, *, first: Mapping[str, str] | None = None, everybody: bool = True
) -> Any:
    """That of this attempt: no rank of an earlier one has written to it.

    It is a part of the process group's if there is one by now, else of the launcher's or rank 0's
    own. The latter lives in rank 0's process, which keeps it: the process group, made later at the
    same address, then shares it, and nobody is connected to one that goes away.

    Args:
        timeout: how long to wait for the other ranks.
        first, everybody: see :func:`.attempt.store_of_attempt`; they matter where ranks meet for
            the first time.

    Raises:
        torch.distributed.DistError: nobody answers within ``timeout``.
    """
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _get_default_store
    from torch.distributed.rendezvous import rendezvous

    from .attempt import store_of_attempt

    global _launchers, _kept
    if _kept is None:
        if dist.is_initialized():
            _launchers = _get_default_store()
        elif _launchers is None:
            _launchers, _, _ = next(rendezvous("env://", *world(), timeout=timeout))
        _kept = store_of_attempt(_launchers, *world(), timeout, first=first, everybody=everybody)
    return _kept


_launchers: Any = None
_kept: Any = None


def key(name: str) -> str:
    """Apart from what others keep in the same store."""
    return f"grove_megatron/{name}"


def group_store(args: Namespace) -> Any:
    """What the process group of this job is to be made with; None: what torch takes by itself.

    NCCL's id and gloo's addresses are exchanged in it, and must not be those of an ended attempt.

    Args:
        args: Megatron's, parsed.
    """
    if args.fake_process_group or not has_store():
        return None
    return job_store(timedelta(minutes=args.distributed_timeout_minutes))


def have_met() -> bool:
    """Have the ranks of this job met in its store, so that none is waited for that never comes?"""
    return _kept is not None


def from_rank_0(make: Callable[[], Any], timeout: timedelta) -> Any:
    """What ``make`` returns on rank 0, on every rank; every rank must call.

    Args:
        make: called on rank 0 alone; its result must be JSON.
        timeout: how long to wait for rank 0.
    """
    if not has_store():
        return make()
    store, name = job_store(timeout), key(f"said/{next(_said)}")
    if world()[0] == 0:
        store.set(name, json.dumps(make()))
    store.wait([name], timeout)
    return json.loads(store.get(name))


def from_all_ranks(mine: list[Any], timeout: timedelta) -> list[tuple[int, Any]]:
    """What the ranks give, each once with the first of them, on every rank; every rank must call.

    Args:
        mine: of this rank, JSON each.
        timeout: how long to wait for the other ranks.
    """
    if not has_store():
        return [(0, one) for one in mine]
    store, name, (rank, world_size) = job_store(timeout), key(f"of_all/{next(_said)}"), world()
    store.set(f"{name}/{rank}", json.dumps([json.dumps(one) for one in mine]))

    def collect() -> dict[str, int]:
        found: dict[str, int] = {}
        for other in range(world_size):
            store.wait([f"{name}/{other}"], timeout)
            for one in json.loads(store.get(f"{name}/{other}")):
                found.setdefault(one, other)
        return found

    collected: dict[str, int] = from_rank_0(collect, timeout)
    return [(first, json.loads(one)) for one, first in collected.items()]


def to_rank_0(mine: Any, timeout: timedelta) -> list[Any]:
    """What the ranks give, in their order, on rank 0, and nothing elsewhere; every rank must call.

    Args:
        mine: of this rank, JSON.
        timeout: how long rank 0 waits for the others.
    """
    if not has_store():
        return [mine]
    store, name, (rank, world_size) = job_store(timeout), key(f"given/{next(_said)}"), world()
    if rank:
        store.set(f"{name}/{rank}", json.dumps(mine))
        return []
    given = [json.loads(json.dumps(mine))]
    for other in range(1, world_size):
        store.wait([f"{name}/{other}"], timeout)
        given.append(json.loads(store.get(f"{name}/{other}")))
    return given


_said = itertools.count()
"""A process may start several jobs one after the other, with the same ranks and the same store."""
