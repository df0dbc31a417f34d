"""One Grove layer on two ranks: beside Megatron's layer, and as Megatron sees its parameters."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import Ranks

CASES = "tests.multirank.layer_cases"


KERNELS = ("grouped", "megatron")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scoring", ["softmax", "grove"])
def test_scale_zero_is_the_layer_without_adjugates(
    scoring: str, kernel: str, ranks: Ranks, tmp_path: Path
) -> None:
    job = ranks.run(2, f"{CASES}:scale_zero", str(tmp_path), scoring, kernel, folder=tmp_path)
    for result in job.check().results():
        assert result["same_names"]
        assert result["bitwise"], "differs from our own layer without adjugates"
        assert result["worst"] < 1e-6, "differs from Megatron's layer"
        assert result["adjugate"] == 0.0


EP2 = {"expert_model_parallel_size": 2}
TP2_ETP2 = {"tensor_model_parallel_size": 2, "expert_tensor_parallel_size": 2}


@pytest.mark.parametrize(
    ("ranks_", "sizes", "kernel"),
    [
        pytest.param(2, EP2, "grouped", id="ep2"),
        pytest.param(2, EP2, "megatron", id="ep2-megatron", marks=pytest.mark.long),
        pytest.param(4, EP2 | TP2_ETP2, "grouped", id="ep2-tp2-etp2", marks=pytest.mark.long),
    ],
)
def test_megatrons_all_gather_computes_the_same(
    ranks_: int, sizes: dict[str, int], kernel: str, ranks: Ranks, tmp_path: Path
) -> None:
    job = ranks.run(ranks_, f"{CASES}:dispatchers", str(tmp_path), sizes, kernel, folder=tmp_path)
    for result in job.check().results():
        assert result["worst"].keys() == set(result["names"])
        assert max(result["worst"].values()) < 1e-5, result["worst"]
        assert result["adjugate"] > 0
        # All tokens, to both expert-parallel ranks.
        assert result["traffic"]["rows"] == 2 * result["traffic"]["tokens"] == 2 * 24


Seen = list[dict[str, Any]]


@pytest.fixture(scope="module")
def seen_of(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """What every rank saw, with the experts in either storage."""
    found = {}
    for kernel in KERNELS:
        folder = tmp_path_factory.mktemp(kernel)
        job = ranks.run(2, f"{CASES}:parameters", str(folder), kernel, folder=folder)
        found[kernel] = job.check().results()
    return found


@pytest.fixture(params=KERNELS)
def seen(request: pytest.FixtureRequest, seen_of: dict[str, Seen]) -> Seen:
    return seen_of[request.param]


def by_kind(table: dict[str, Any], kind: str) -> dict[str, Any]:
    """{fc name: value} of one kind of expert; all its experts must agree."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if match := re.match(rf"{kind}\.(?:local_experts\.\d+\.)?(linear_fc[12])\.weight", name):
            assert found.setdefault(match[1], value) == value
    assert set(found) == {"linear_fc1", "linear_fc2"}
    return found


@pytest.mark.parametrize("table", ["described", "groups"])
def test_adjugates_are_to_megatron_what_experts_are(table: str, seen: Seen) -> None:
    for rank in seen:
        assert by_kind(rank[table], "adjugate_experts") == by_kind(rank[table], "experts")


def test_experts_and_adjugates_are_reduced_over_their_own_ranks_and_decayed(
    seen: Seen,
) -> None:
    for rank in seen:
        for allreduce, *_ in by_kind(rank["described"], "adjugate_experts").values():
            assert allreduce is False
        for decay, is_expert in by_kind(rank["groups"], "adjugate_experts").values():
            assert (decay, is_expert) == (1.0, True)


def test_adjugates_have_checkpoint_keys_like_experts_with_the_groups_as_axis(
    seen: Seen,
) -> None:
    keys = [set(rank["sharded"]) for rank in seen]
    assert keys[0] == keys[1]
    adjugate = {k for k in keys[0] if ".adjugate_experts." in k}
    routed = {k for k in keys[0] if ".experts.experts." in k}
    assert {k.replace(".adjugate_experts.", ".experts.") for k in adjugate} == routed
    for key in adjugate:
        placed = [tuple(o) for r in seen for _, _, o in r["sharded"][key]]
        shapes = {tuple(s) for r in seen for _, s, _ in r["sharded"][key]}
        assert {s[0] for s in shapes} == {4}, "one entry per group along the first axis"
        assert len(placed) == len(set(placed)), "every piece at its own place"


def test_the_storage_changes_nothing_about_checkpoints_and_optimizer_groups(
    seen_of: dict[str, Seen],
) -> None:
    for grouped, sequential in zip(*(seen_of[kernel] for kernel in KERNELS), strict=True):
        places = [
            {key: sorted(place for _, *place in pieces) for key, pieces in rank["sharded"].items()}
            for rank in (grouped, sequential)
        ]
        assert places[0] == places[1]
        for kind in ("experts", "adjugate_experts"):
            assert by_kind(grouped["groups"], kind) == by_kind(sequential["groups"], kind)


@pytest.mark.parametrize("kernel", KERNELS)
def test_experts_never_read_memory_that_a_stage_has_handed_on(
    kernel: str, ranks: Ranks, tmp_path: Path
) -> None:
    job = ranks.run(2, f"{CASES}:aliasing", str(tmp_path), kernel, folder=tmp_path)
    for result in job.check().results():
        assert len({*result["stages"]}) == 3
        assert result["fed"]
        assert not {*result["stages"]} & {*result["fed"]}
