"""What ranks tell each other before there is a process group."""

from datetime import timedelta

import pytest

from grove_megatron.failure import job_store
from tests.unit.ranks_as_threads import of_ranks

MINUTE = timedelta(minutes=1)


def test_every_rank_hears_the_lines_of_all_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [["on every rank", "of rank 0"], [], ["on every rank", "of a node"], ["of a node"]]

    def twice(rank: int) -> tuple[list[str], list[str]]:
        first = job_store.from_all_ranks(mine[rank], MINUTE)
        return first, job_store.from_all_ranks([], MINUTE)

    lines = ["on every rank", "of rank 0", "rank 2: of a node"]
    assert of_ranks(job_store, 4, twice, monkeypatch) == dict.fromkeys(range(4), (lines, []))


def test_one_rank_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert job_store.from_all_ranks(["mine"], MINUTE) == ["mine"]
