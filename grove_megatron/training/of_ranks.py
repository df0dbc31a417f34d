"""Problems that ranks tell one another."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from ..checks.problem import Problem
from ..failure.job_store import from_all_ranks, from_rank_0


def problems_of_rank_0(find: Callable[[], list[Problem]], timeout: timedelta) -> list[Problem]:
    """What ``find`` returns on rank 0, on every rank; every rank must call.

    Args:
        find: called on rank 0 alone.
        timeout: how long to wait for rank 0.
    """
    packed = from_rank_0(lambda: [one.packed() for one in find()], timeout)
    return [Problem.unpacked(one) for one in packed]


def problems_of_all_ranks(mine: list[Problem], timeout: timedelta) -> list[Problem]:
    """What any rank has found, each once, on every rank; every rank must call.

    Args:
        mine: of this rank. What rank 0 has not is given with the number of the rank.
        timeout: how long to wait for the other ranks.
    """
    found = from_all_ranks([one.packed() for one in mine], timeout)
    return [
        replace(Problem.unpacked(packed), where=f"rank {rank}" if rank else "")
        for rank, packed in found
    ]
