"""Ranks of a job as threads of one process, with one store."""

import itertools
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch.distributed as dist


def of_ranks(
    module: ModuleType, world: int, call: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> dict[int, Any]:
    """What ``call`` returns on each rank.

    Args:
        module: whose functions are asked for the store of the job and the rank.
        world: ranks.
        call: with the number of a rank.
        monkeypatch: of the test.
    """
    store, mine = dist.HashStore(), threading.local()
    # A process of its own each.
    counts = [itertools.count() for _ in range(world)]
    monkeypatch.setattr(module, "next", lambda _: next(counts[mine.rank]), raising=False)
    monkeypatch.setattr(module, "has_store", lambda: True)
    monkeypatch.setattr(module, "job_store", lambda timeout: store)
    monkeypatch.setattr(module, "world", lambda: (mine.rank, world))
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
