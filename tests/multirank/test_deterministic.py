"""A layer on several ranks computes the same bits every time, and the same in one hop or two."""

from pathlib import Path

import pytest

from tests.ranks import Ranks

CASES = "tests.multirank.deterministic_cases"

KERNELS = ("grouped", "megatron")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("hierarchical", "world_size"), [(False, 2), (True, 4)])
def test_the_bits_are_the_same_every_time_with_and_without_torch_s_deterministic_algorithms(
    hierarchical: bool, world_size: int, kernel: str, ranks: Ranks, tmp_path: Path
) -> None:
    job = ranks.run(
        world_size, f"{CASES}:same_bits", str(tmp_path), kernel, hierarchical, folder=tmp_path
    )
    for result in job.check().results():
        assert result["hops"] == 1 + hierarchical
        assert result["one pass"] is (kernel == "grouped")
        assert {"y", "x", "router.weight"} < set(result["names"])
        assert any(name.startswith("experts.") for name in result["names"])
        assert any(name.startswith("adjugate_experts.") for name in result["names"])
        for outcome in ("finite and not 0", "again", "as always"):
            assert result[outcome] == result["names"], outcome


@pytest.mark.parametrize("kernel", KERNELS)
def test_two_hops_compute_what_one_does_and_cross_once_per_token_and_node(
    kernel: str, ranks: Ranks, tmp_path: Path
) -> None:
    job = ranks.run(4, f"{CASES}:hierarchical_is_flat", str(tmp_path), kernel, folder=tmp_path)
    results = job.check().results()
    for rank, result in enumerate(results):
        assert result["hops"] == [1, 2]
        worst = max(result["errors"], key=result["errors"].get)
        assert result["errors"][worst] <= 1e-6, f"{worst}: {result['errors'][worst]:.2g}"
        assert result["node rows"] == result["met"]
        assert 0 < result["met"] < result["flat rows"] < result["pairs"]
        # The rank in its own place on the other node sends to it what it sends there.
        away, came = result["away"], result["away of all"][(rank + 2) % 4]
        forth, back = [away, came], [came, away]
        # Rows out and back, then their gradients out and back.
        assert result["between nodes"] == [forth, back, forth, back]
    # One hop or two: as many (token, rank) meet.
    assert sum(r["rows"] for r in results) == sum(r["flat rows"] for r in results)
