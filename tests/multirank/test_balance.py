"""Balancing does not depend on how the tokens of a batch are laid out over ranks."""

from pathlib import Path
from typing import Any

import pytest

from tests.multirank.balance_cases import BATCHES, EXPERTS, LAYERS
from tests.ranks import Ranks

CASES = "tests.multirank.balance_cases"
TP2 = {"tensor_model_parallel_size": 2}
CP2 = {"context_parallel_size": 2}
EP2 = {"expert_model_parallel_size": 2}

# Ranks, parallel sizes, microbatches.
LAYOUTS: dict[str, tuple[int, dict[str, int], int]] = {
    "dp1": (1, {}, 8),
    "dp4": (4, {}, 2),
    "dp2-tp2": (4, TP2, 1),
    "dp2-cp2-ep2": (4, CP2 | EP2, 3),
}


def test_the_bias_is_the_same_bits_in_every_layout(ranks: Ranks, tmp_path: Path) -> None:
    found = {}
    for name, (world_size, sizes, microbatches) in LAYOUTS.items():
        folder = tmp_path / name
        job = ranks.run(
            world_size, f"{CASES}:biases", str(folder), sizes, microbatches, folder=folder
        )
        for result in job.check().results():
            # A collective a batch, whatever the number of layers.
            assert result["collectives"] == [f"torch.int64 ({LAYERS}, {EXPERTS})"] * BATCHES
            assert result["largest"] > 0.1
            found[name] = result["bits"]
    for name, bits in found.items():
        assert bits == found["dp1"], name


@pytest.mark.parametrize("sizes", [TP2, CP2], ids=["tp2", "cp2"])
def test_every_loss_is_that_of_one_rank(
    sizes: dict[str, int], ranks: Ranks, tmp_path: Path
) -> None:
    def run(world_size: int, sizes: dict[str, int]) -> list[dict[str, Any]]:
        folder = tmp_path / str(world_size)
        job = ranks.run(world_size, f"{CASES}:losses", str(folder), sizes, folder=folder)
        return job.check().results()

    (one,) = run(1, {})
    assert len(one["found"]) > 6
    for result in run(2, sizes):
        assert result["ranks"] == 2
        for name, expected in one["found"].items():
            found = result["found"][name]
            assert found["losses"] == pytest.approx(expected["losses"], rel=1e-6), name
            largest = max(map(abs, expected["gradients"]))
            assert largest > 1e-5, name
            assert found["gradients"] == pytest.approx(
                expected["gradients"], rel=1e-10, abs=1e-10 * largest
            ), name
