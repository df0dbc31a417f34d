"""What ranks have otherwise than rank 0, in words."""

import os
from argparse import Namespace
from typing import Any

import pytest

from grove_megatron.checks.problem import Problem
from grove_megatron.training import same_flags
from grove_megatron.training.same_flags import described, differences, otherwise
from tests.unit.ranks_as_threads import of_ranks

FIRST = {"--lr": "0.1", "--load": "/a", "--save": "None", "version of torch": "2.13.0"}


def others(**by_rank: dict[str, str]) -> dict[int, dict[str, str]]:
    return {int(name[1:]): otherwise(FIRST, FIRST | given) for name, given in by_rank.items()}


def test_equal_flags_have_no_differences() -> None:
    assert others(r1={}, r2={}) == {1: {}, 2: {}}
    assert differences(FIRST, others(r1={}, r2={})) == ([], [])


def test_a_flag_is_named_with_the_values_of_all_ranks() -> None:
    found, warnings = differences(FIRST, others(r1={}, r2={"--lr": "1"}, r3={}, r4={"--lr": "2"}))
    assert [*map(str, found)] == [
        "--lr (0.1 on ranks 0-1, 3; 1 on rank 2; 2 on rank 4) differs between ranks; give every "
        "node the same flags"
    ]
    assert warnings == []


def test_a_flag_that_a_rank_does_not_know_is_absent() -> None:
    theirs = {1: otherwise(FIRST, {k: v for k, v in FIRST.items() if k != "--lr"} | {"--new": "1"})}
    assert [(found.flag, found.value) for found in differences(FIRST, theirs)[0]] == [
        ("--lr", "0.1 on rank 0; absent on rank 1"),
        ("--new", "absent on rank 0; 1 on rank 1"),
    ]


def test_paths_may_differ_unless_one_is_missing() -> None:
    assert differences(FIRST, others(r1={"--load": "/b"})) == (
        [],
        ["--load (/a on rank 0; /b on rank 1) differs between ranks"],
    )
    for missing in ({"--load": "None"}, {"--save": "/c"}):
        problems, warnings = differences(FIRST, others(r1=missing))
        assert len(problems) == 1
        assert warnings == []


def test_versions_are_compared() -> None:
    (found,), _ = differences(FIRST, others(r1={"version of torch": "2.11"}))
    line = "version of torch (2.13.0 on rank 0; 2.11 on rank 1) differs between ranks; install one"
    assert str(found) == line


def test_what_is_a_ranks_own_is_not_compared() -> None:
    assert "--rank" not in described(Namespace(rank=1, local_rank=1, lr=0.1))
    assert described(Namespace(lr=0.1))["--lr"] == "0.1"
    assert described(Namespace(f=object()))["--f"] == "<object object>"


def test_every_rank_hears_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    world = 4

    def twice(rank: int) -> tuple[Any, Any]:
        args = Namespace(
            topk=2 + rank // 3, fake_process_group=False, distributed_timeout_minutes=1
        )
        first = same_flags.compare_ranks(args)
        args.topk = 2
        return first, same_flags.compare_ranks(args)

    heard = of_ranks(same_flags, world, twice, monkeypatch)
    text = "differs between ranks; give every node the same flags"
    found = Problem("--topk", "2 on ranks 0-2; 3 on rank 3", text)
    # And the next model of the same processes.
    assert heard == dict.fromkeys(range(world), (([found], []), ([], [])))


def test_one_rank_compares_with_nobody() -> None:
    assert os.environ.get("WORLD_SIZE", "1") == "1"
    assert same_flags.compare_ranks(Namespace(fake_process_group=False)) == ([], [])
