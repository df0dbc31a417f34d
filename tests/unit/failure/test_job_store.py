"""What ranks tell each other before there is a process group."""

import itertools
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from grove_megatron.failure import job_store

MINUTE = timedelta(minutes=1)


def of_ranks(
    world: int, call: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> dict[int, Any]:
    """What ``call`` returns on each rank; ranks as threads, with one store."""
    store, mine = dist.HashStore(), threading.local()
    # A process of its own each.
    counts = [itertools.count() for _ in range(world)]
    monkeypatch.setattr(job_store, "next", lambda _: next(counts[mine.rank]), raising=False)
    monkeypatch.setattr(job_store, "has_store", lambda: True)
    monkeypatch.setattr(job_store, "job_store", lambda timeout: store)
    monkeypatch.setattr(job_store, "world", lambda: (mine.rank, world))
    heard: dict[int, Any] = {}

    def rank(number: int) -> None:
        mine.rank = number
        heard[number] = call(number)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return heard


def test_every_rank_hears_the_lines_of_all_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [["on every rank", "of rank 0"], [], ["on every rank", "of a node"], ["of a node"]]

    def twice(rank: int) -> tuple[list[str], list[str]]:
        first = job_store.from_all_ranks(mine[rank], MINUTE)
        return first, job_store.from_all_ranks([], MINUTE)

    lines = ["on every rank", "of rank 0", "rank 2: of a node"]
    assert of_ranks(4, twice, monkeypatch) == dict.fromkeys(range(4), (lines, []))


def test_one_rank_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert job_store.from_all_ranks(["mine"], MINUTE) == ["mine"]
