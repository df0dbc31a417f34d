from itertools import combinations, permutations
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grove_megatron.simulate.draw import NONE, choose, from_homes, in_pieces, with_loads

MANY = 20_000
# Of a share of so many tokens five standard deviations.
NOISE = 5 * (0.25 / MANY) ** 0.5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sets(chosen: Tensor) -> dict[frozenset[int], float]:
    """Share of the tokens with every set of experts."""
    found: dict[frozenset[int], float] = {}
    for row in chosen.tolist():
        key = frozenset(row) - {NONE}
        found[key] = found.get(key, 0.0) + 1 / len(chosen)
    return found


def chance(order: tuple[int, ...], weights: list[float]) -> float:
    """Of a choice by weight, one after the other."""
    left = sum(weights)
    chances = []
    for expert in order:
        chances.append(weights[expert] / left)
        left -= weights[expert]
    return prod(chances)


@pytest.mark.parametrize(
    "weights", [[1.0, 1.0, 1.0, 1.0], [100.0, 10.0, 1.0, 1.0], [5.0, 0.0, 1.0, 2.0]]
)
def test_a_choice_by_weight_has_the_chances_of_one_after_the_other(weights: list[float]) -> None:
    found = sets(choose(torch.tensor(weights).double(), MANY, 2, generator()))
    for pair in combinations(range(4), 2):
        expected = sum(chance(order, weights) for order in permutations(pair))
        assert found.get(frozenset(pair), 0.0) == pytest.approx(expected, abs=NOISE)


@given(data=st.data(), topk=st.integers(1, 6), seed=st.integers(0, 99))
def test_experts_of_a_choice_are_distinct_and_have_weights(
    data: st.DataObject, topk: int, seed: int
) -> None:
    weight = st.sampled_from((0.0, 1e-6, 1.0, 1e6))
    weights = data.draw(st.lists(weight, min_size=topk, max_size=12))
    weights += [1.0] * max(0, topk - sum(w > 0 for w in weights))
    chosen = choose(torch.tensor(weights).double(), 50, topk, generator(seed))
    for row in chosen.tolist():
        assert len(set(row)) == topk
        assert all(weights[expert] > 0 for expert in row)


def test_loads_are_those_that_were_asked_for() -> None:
    loads = torch.tensor([1.0, 0.7, 0.5, 0.3, 0.0, 0.1], dtype=torch.float64)
    chosen = with_loads(loads, MANY, 3, generator())
    counts = torch.zeros(7).scatter_add_(0, chosen.flatten() % 7, torch.ones(chosen.numel()))
    assert (counts[:6] / MANY).tolist() == pytest.approx(loads.tolist(), abs=NOISE)
    # 2.6 experts a token: two or three, each once.
    lengths = (chosen != NONE).sum(1)
    assert set(lengths.tolist()) == {2, 3}
    assert lengths.double().mean() == pytest.approx(2.6, abs=NOISE)
    assert all(len(set(row) - {NONE}) == sum(e != NONE for e in row) for row in chosen.tolist())


def test_equal_loads_are_a_uniform_choice() -> None:
    found = sets(with_loads(torch.full((5,), 0.4, dtype=torch.float64), MANY, 2, generator()))
    for pair in combinations(range(5), 2):
        assert found[frozenset(pair)] == pytest.approx(0.1, abs=NOISE)


def test_tokens_have_as_many_experts_at_home_as_they_should() -> None:
    home = torch.tensor([4, 1, 6]).expand(MANY, 3)
    inside = torch.arange(MANY) % 4
    chosen = from_homes(home, inside, 8, 4, generator())
    assert torch.isin(chosen, torch.tensor([4, 1, 6])).sum(1).tolist() == inside.tolist()
    assert all(len(set(row)) == 4 for row in chosen.tolist())
    # All at home are as likely, and all elsewhere.
    counts = torch.bincount(chosen.flatten(), minlength=8) / MANY
    assert counts[[4, 1, 6]].tolist() == pytest.approx([0.5] * 3, abs=NOISE)
    assert counts[[0, 2, 3, 5, 7]].tolist() == pytest.approx([0.5] * 5, abs=NOISE)
    # In no order.
    first = torch.isin(chosen[:, 0], torch.tensor([4, 1, 6])).double().mean()
    assert first == pytest.approx(1.5 / 4, abs=NOISE)


@given(tokens=st.integers(0, 50), width=st.sampled_from((2**19, 2**20, 2**21, 2**30)))
def test_pieces_are_all_of_the_tokens_and_small(tokens: int, width: int) -> None:
    seen: list[int] = []

    def draw(count: int) -> Tensor:
        seen.append(count)
        return torch.full((count, 2), len(seen))

    found = in_pieces(tokens, width, draw)
    assert found.shape == (tokens, 2)
    assert sum(seen) == tokens
    assert max(seen) * width <= max(2**22, width)
