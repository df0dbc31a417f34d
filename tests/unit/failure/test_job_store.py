"""What ranks tell each other before there is a process group."""

from datetime import timedelta
from typing import Any

import pytest

from grove_megatron.failure import job_store
from tests.unit.ranks_as_threads import of_ranks

MINUTE = timedelta(minutes=1)


def test_every_rank_hears_what_all_say_once(monkeypatch: pytest.MonkeyPatch) -> None:
    every, one, node = {"on": ["every", "rank"]}, ["of", 0], "of a node"
    mine: list[list[Any]] = [[every, one], [], [every, node], [node]]

    def twice(rank: int) -> tuple[list[Any], list[Any]]:
        first = job_store.from_all_ranks(mine[rank], MINUTE)
        return first, job_store.from_all_ranks([], MINUTE)

    heard = [(0, every), (0, one), (2, node)]
    assert of_ranks(job_store, 4, twice, monkeypatch) == dict.fromkeys(range(4), (heard, []))


def test_one_rank_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert job_store.from_all_ranks(["mine"], MINUTE) == [(0, "mine")]


def test_rank_0_alone_hears_what_every_rank_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(rank: int) -> tuple[list[Any], list[Any]]:
        return job_store.to_rank_0([rank], MINUTE), job_store.to_rank_0("again", MINUTE)

    heard = of_ranks(job_store, 3, twice, monkeypatch)
    assert heard == {0: ([[0], [1], [2]], ["again"] * 3), 1: ([], []), 2: ([], [])}


def test_one_rank_gives_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert job_store.to_rank_0("mine", MINUTE) == ["mine"]
