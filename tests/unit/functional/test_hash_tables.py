"""Tables of hash layers: those of the authors' code, without its side effects."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grove_megatron.functional.hash_tables import balanced_table, random_table

GOLDEN = Path(__file__).parents[2] / "data" / "goldens" / "hash"


def test_the_drawn_table_is_that_of_the_authors() -> None:
    expected = load_file(GOLDEN / "layer.safetensors")["hash_table"]
    random.seed(5)
    state = random.getstate()
    assert random_table(96, 6, 1, seed=42)[:, 0].tolist() == expected.tolist()
    assert random.getstate() == state


def test_the_balanced_table_is_that_of_the_paper() -> None:
    golden = load_file(GOLDEN / "layer.balanced.safetensors")
    counts = tuple(golden["token_freq"].long().tolist())
    table = balanced_table(counts, 6, 1)
    assert table[:, 0].tolist() == golden["hash_table"].tolist()
    loads = torch.zeros(6, dtype=torch.int64).index_add(0, table[:, 0].long(), torch.tensor(counts))
    assert torch.equal(loads, golden["bin_load"].long())
    # Unless a token alone is more than an expert's part.
    assert loads.max() <= 1.05 * loads.double().mean()


@pytest.mark.parametrize("per_token", [1, 3, 5])
def test_several_experts_of_a_token_are_different(per_token: int) -> None:
    counts = tuple(1000 // (rank + 1) for rank in range(200))
    for table in (random_table(200, 5, per_token, 7), balanced_table(counts, 5, per_token)):
        assert table.shape == (200, per_token)
        assert all(len({*row}) == per_token for row in table.tolist())
        assert ((table >= 0) & (table < 5)).all()
    pairs = torch.tensor(counts).unsqueeze(1).expand(-1, per_token).flatten()
    load = torch.zeros(5, dtype=torch.int64).index_add(
        0, balanced_table(counts, 5, per_token).flatten().long(), pairs
    )
    assert load.max() <= 1.05 * load.double().mean()


def test_a_seed_is_one_table() -> None:
    assert torch.equal(random_table(50, 4, 2, 1), random_table(50, 4, 2, 1))
    assert not torch.equal(random_table(50, 4, 2, 1), random_table(50, 4, 2, 2))


def test_ids_that_are_never_seen_have_experts_too() -> None:
    table = balanced_table((5, 0, 0, 3), 2, 1)
    assert table[:, 0].tolist() == [0, 1, 1, 1]
