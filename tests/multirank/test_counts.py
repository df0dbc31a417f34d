"""What one layer counts: which passes, which tokens, which rows."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.multirank.count_cases import TOKENS
from tests.ranks import Ranks

CASES = "tests.multirank.count_cases"
E, G, R, K = 8, 4, 2, 2


def counted(routing: list[list[int]], rank: int) -> dict[str, list[float]]:
    """What the layer of ``rank`` should have counted of these tokens."""
    experts, groups, sharing, rows = [0.0] * E, [0.0] * G, [0.0] * (K + 1), [0.0] * R
    together = [[0.0] * G for _ in range(G)]
    left = 0.0
    for chosen in routing:
        met, to = {e * G // E for e in chosen}, {e * R // E for e in chosen}
        sharing[len(met)] += 1
        left += len(to - {rank})
        for a, b in product(met, met):
            together[a][b] += 1
        for numbers, members in ((experts, chosen), (groups, met), (rows, to)):
            for member in members:
                numbers[member] += 1
    found = {"experts": experts, "groups": groups, "sharing": sharing, "rows": rows}
    scalars = {"holders": 1, "biased": 0, "sent_tokens": len(routing), "rerun_tokens": 0}
    scalars |= {"left_rows": left, "node_rows": 0}
    found |= {"bias": [0.0] * E, "coactivation": [n for row in together for n in row]}
    return {name: [float(n)] for name, n in scalars.items()} | found


@pytest.fixture(scope="module")
def found(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("passes")
    return ranks.run(2, f"{CASES}:passes", str(folder), folder=folder).check().results()


@pytest.mark.parametrize(
    ("kind", "times", "rerun"), [("training", 1, 0), ("twice", 2, 0), ("recompute", 1, TOKENS)]
)
def test_every_training_pass_counts_once(
    kind: str, times: int, rerun: int, found: list[dict[str, Any]]
) -> None:
    for rank, result in enumerate(found):
        expected = counted(result["routing"] * times, rank) | {"rerun_tokens": [float(rerun)]}
        assert result[kind] == expected


@pytest.mark.parametrize("kind", ["taken", "evaluation"])
def test_evaluation_and_what_was_taken_count_nothing(
    kind: str, found: list[dict[str, Any]]
) -> None:
    for rank, result in enumerate(found):
        assert result[kind] == counted([], rank)


def test_padding_is_sent_and_is_no_load(found: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(found):
        everything = counted(result["routing"], rank)
        real = counted([t for i, t in enumerate(result["routing"]) if i % 3], rank)
        assert real["experts"] != everything["experts"]
        load = {name: real[name] for name in ("experts", "groups", "sharing", "coactivation")}
        assert result["padded"] == everything | load


def test_counting_adds_no_collective(ranks: Ranks, tmp_path: Path) -> None:
    job = ranks.run(2, f"{CASES}:collectives", str(tmp_path), folder=tmp_path)
    for result in job.check().results():
        assert result["counted"]["sent_tokens"] == [TOKENS]
        assert result["with"] == result["without"]
        assert result["with"]


def test_nothing_is_counted_unasked_and_no_tokens_are_no_trouble(
    ranks: Ranks, tmp_path: Path
) -> None:
    job = ranks.run(2, f"{CASES}:nothing", str(tmp_path), folder=tmp_path)
    for rank, result in enumerate(job.check().results()):
        assert result["counts"] is None
        unasked = counted([[], [], []], rank)
        del unasked["coactivation"]
        assert result["taken"] == unasked


@pytest.mark.parametrize(
    ("dispatcher", "nodes", "sizes"),
    [
        pytest.param("alltoall", False, (4, 1), id="ep4", marks=pytest.mark.long),
        pytest.param("alltoall", True, (4, 1), id="ep4-nodes", marks=pytest.mark.long),
        pytest.param("allgather", False, (4, 1), id="ep4-allgather", marks=pytest.mark.long),
        pytest.param("alltoall", False, (2, 2), id="ep2-etp2"),
        pytest.param("alltoall", False, (1, 4), id="etp4", marks=pytest.mark.long),
        pytest.param("allgather", False, (2, 2), id="ep2-etp2-allgather", marks=pytest.mark.long),
    ],
)
def test_rows_that_leave_a_rank_are_those_that_collectives_carry(
    dispatcher: str, nodes: bool, sizes: tuple[int, int], ranks: Ranks, tmp_path: Path
) -> None:
    """``sizes``: expert-parallel ranks, and ranks of expert tensor parallelism."""
    job = ranks.run(4, f"{CASES}:sent", str(tmp_path), dispatcher, nodes, *sizes, folder=tmp_path)
    results = job.check().results()
    for result in results:
        if dispatcher == "allgather":
            # To the three others, of either kind.
            assert result["left"] == 3 * TOKENS
            assert result["rows"] == sizes[0] * TOKENS
        assert result["node_rows"] == result["traffic"]["node_rows"]
        assert (result["node_rows"] > 0) == nodes
    left = sum(result["left"] for result in results)
    for counted, sent in (("rows", "rows"), ("pairs", "routed_pairs")):
        assert sum(r[counted] for r in results) == sum(r["traffic"][sent] for r in results)
    if dispatcher == "alltoall":
        # Dispatch and combine, and the gradients of both, go the same ways.
        assert 4 * left == sum(result["crossed"] for result in results)
