"""Problems that ranks tell one another."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from ..checks.problem import Problem
from ..failure.job_store import from_all_ranks, from_rank_0


def problems_of_rank_0(find: Callable[[], list[Problem]], timeout: timedelta) -> list[Problem]:
    """What ``find`` returns on rank 0, on every rank; every rank must call."""
    packed = from_rank_0(lambda: [one.packed() for one in find()], timeout)
    return [Problem.unpacked(one) for one in packed]


def problems_of_all(args: Namespace, mine: list[Problem]) -> list[Problem]:
    """What any rank has found, each once, on every rank; every rank must call.

    Args:
        args: Megatron's, parsed.
        mine: of this rank. What rank 0 has not is given with the number of the rank.
    """
    if args.fake_process_group:
        return mine
    timeout = timedelta(minutes=args.distributed_timeout_minutes)
    found = from_all_ranks([one.packed() for one in mine], timeout)
    ranks = [f"rank {rank}" if rank else "" for rank, _ in found]
    return [replace(Problem.unpacked(p), where=r) for r, (_, p) in zip(ranks, found, strict=True)]
