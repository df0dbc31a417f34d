from argparse import Namespace
from datetime import timedelta
from pathlib import Path

import pytest

from grove_megatron.checks.problem import Problem
from grove_megatron.failure import job_store
from grove_megatron.training.of_ranks import problems_of_all, problems_of_rank_0
from tests.unit.ranks_as_threads import of_ranks

MINUTE = timedelta(minutes=1)
OF_ALL = Problem("--lr", None, "is needed; give it")
OF_A_NODE = Problem("--save", Path("/a"), "cannot be written", about=("--load",))


def test_every_rank_hears_of_a_problem_once_and_whose_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = [[OF_ALL], [OF_ALL, OF_A_NODE], [OF_A_NODE]]

    def ask(rank: int) -> list[tuple[str, tuple[str, ...], str]]:
        args = Namespace(fake_process_group=False, distributed_timeout_minutes=1)
        found = problems_of_all(args, mine[rank])
        return [(one.flag, one.about, str(one)) for one in found]

    heard = [
        ("--lr", (), "--lr (None) is needed; give it"),
        ("--save", ("--load",), "rank 1: --save (/a) cannot be written"),
    ]
    assert of_ranks(job_store, 3, ask, monkeypatch) == dict.fromkeys(range(3), heard)


def test_one_rank_looks_and_all_hear_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(rank: int) -> list[str]:
        def find() -> list[Problem]:
            assert rank == 0
            return [OF_A_NODE]

        return [*map(str, problems_of_rank_0(find, MINUTE))]

    assert of_ranks(job_store, 2, ask, monkeypatch) == {0: [str(OF_A_NODE)], 1: [str(OF_A_NODE)]}
