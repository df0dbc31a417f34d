"""GroupedExperts on several ranks are to Megatron what SequentialMLP is."""

from pathlib import Path
from typing import Any

import pytest

from tests.multirank.expert_cases import FC, LOCAL, METADATA, OFFSETS, each
from tests.ranks import Ranks

SIZES = {
    "ep2": (2, {"expert_model_parallel_size": 2}),
    "dp2-ep2": (4, {"expert_model_parallel_size": 2}),
    "tp2-etp2-ep2": (
        4,
        {
            "tensor_model_parallel_size": 2,
            "expert_tensor_parallel_size": 2,
            "expert_model_parallel_size": 2,
        },
    ),
}


CASES = "tests.multirank.expert_cases"


@pytest.fixture(scope="module", params=SIZES)
def seen(
    request: pytest.FixtureRequest, ranks: Ranks, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    world_size, sizes = SIZES[request.param]
    folder = tmp_path_factory.mktemp("experts")
    job = f"{CASES}:beside_sequential"
    return ranks.run(world_size, job, str(folder), sizes, folder=folder).check().results()


def test_the_initial_weights_are_the_same_bits(seen: list[dict[str, Any]]) -> None:
    assert all(rank["weights"] == [True, True] for rank in seen)


@pytest.mark.parametrize("fc", FC)
def test_a_parameter_has_the_marks_of_an_expert_s(fc: str, seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        ours, theirs = rank["marks"]["grouped"][fc], rank["marks"]["sequential"][fc]
        assert ours["allreduce"] is False
        # Stacking puts an axis in front.
        assert ours == theirs | {"partition_dim": theirs["partition_dim"] + 1}


@pytest.mark.parametrize("what", ["entries", "moments", "engine's entries", "engine's moments"])
def test_a_checkpoint_gets_the_entries_of_megatron_s_experts(
    what: str, seen: list[dict[str, Any]]
) -> None:
    # Gate, up and down of every expert; and the empty extra states of its two layers.
    kinds = {"ShardedTensor": 3 * LOCAL} | (
        {"ShardedObject": 2 * LOCAL} if what.endswith("entries") else {}
    )
    for rank in seen:
        found = list(each(rank, what))
        assert len(found) == len(METADATA) * len(OFFSETS)
        for compared in found:
            assert compared == {"kinds": kinds, "problems": []}


def test_merging_undoes_building(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert list(each(rank, "merged")) == [True] * len(METADATA) * len(OFFSETS)


@pytest.mark.parametrize("layout", SIZES)
def test_what_either_has_written_either_can_read(layout: str, ranks: Ranks, tmp_path: Path) -> None:
    world_size, sizes = SIZES[layout]
    job = ranks.run(world_size, f"{CASES}:read_back", str(tmp_path), sizes, folder=tmp_path)
    expected = {
        f"{metadata}: {writer} to {reader}": True
        for metadata in ("none", "singleton")
        for writer in ("grouped", "sequential")
        for reader in ("grouped", "sequential")
    }
    assert job.check().results() == [expected] * world_size
