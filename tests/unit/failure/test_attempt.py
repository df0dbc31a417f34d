"""Ranks as threads, with the store of a launcher that outlives their attempts."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from grove_megatron.failure.attempt import store_of_attempt

WORLD = 3
TIMEOUT = timedelta(seconds=60)


@pytest.fixture
def connect() -> Callable[[], Any]:
    """A connection of a process to the launcher's store."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def connect() -> Any:
        kept = server  # not to be closed before the test ends
        return dist.TCPStore("127.0.0.1", kept.port, is_master=False, timeout=TIMEOUT)

    return connect


def on_ranks(run: Callable[[int], Any], ranks: range = range(WORLD)) -> dict[int, Any]:
    """What ``run`` returns or raises, by rank."""
    found: dict[int, Any] = {}

    def rank(number: int) -> None:
        try:
            found[number] = run(number)
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=rank, args=(number,), daemon=True) for number in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return found


def test_ten_attempts_meet_although_the_store_is_kept(connect: Callable[[], Any]) -> None:
    """What gloo keeps in the store are addresses of the ranks of before, which are gone."""

    def run(number: int, late: int) -> float:
        time.sleep(0.3 * (number == late))
        store = store_of_attempt(connect(), number, WORLD, TIMEOUT)
        group = dist.ProcessGroupGloo(store, number, WORLD, timedelta(seconds=20))
        total = torch.ones(())
        group.allreduce([total]).wait()
        return total.item()

    for late in (*range(WORLD), *range(7)):
        found = on_ranks(lambda number, late=late: run(number, late))
        assert found == dict.fromkeys(range(WORLD), WORLD)


def test_nobody_waits_for_ranks_of_an_attempt_that_never_began(
    connect: Callable[[], Any],
) -> None:
    """Each of the ranks of before ended while it waited for the others."""
    short = timedelta(seconds=0.5)
    for present in (range(1), range(1, WORLD), range(2)):
        found = on_ranks(lambda n: store_of_attempt(connect(), n, WORLD, short), present)
        assert all(isinstance(error, dist.DistError) for error in found.values()), found

    def run(number: int) -> bytes:
        store = store_of_attempt(connect(), number, WORLD, TIMEOUT)
        if number == 0:
            store.set("who", "this attempt")
        return store.get("who")

    assert on_ranks(run) == dict.fromkeys(range(WORLD), b"this attempt")


def test_who_comes_hears_rank_0_although_another_never_comes(connect: Callable[[], Any]) -> None:
    """As a refusal is told."""
    short = timedelta(seconds=1.0)

    def run(number: int) -> bytes:
        store = store_of_attempt(
            connect(), number, WORLD, short, first={"said": "no"}, everybody=False
        )
        return store.get("said")

    found = on_ranks(run, range(2))
    assert isinstance(found[0], dist.DistStoreError)
    assert found[1] == b"no"


def test_a_rank_goes_over_to_the_rank_0_of_a_new_attempt(connect: Callable[[], Any]) -> None:
    """On a node whose ranks still wait when those of another are started again."""

    def run(number: int) -> bytes:
        if number == 0:
            # Ends when the first has answered rank 1, which waits for rank 2 with it.
            with pytest.raises(dist.DistStoreError, match="1 of 3 ranks did not come"):
                store_of_attempt(connect(), 0, WORLD, timedelta(seconds=0.7))
        elif number == 2:
            time.sleep(1.0)
        store = store_of_attempt(connect(), number, WORLD, TIMEOUT)
        if number == 0:
            store.set("who", "the second")
        return store.get("who")

    assert on_ranks(run) == dict.fromkeys(range(WORLD), b"the second")
