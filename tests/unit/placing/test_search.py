"""The search, beside complete search, a library's bisection, and a greedy balancer."""

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grove_megatron.placing.counts import Array, of_tokens
from grove_megatron.placing.exact import cheapest
from grove_megatron.placing.greedy import balanced, rank_loads
from grove_megatron.placing.search import Task, improved, search
from tests.unit.placing.routings import leaning, planted, scattered


def a_task(units: int, ranks: int, seed: int, over: float = np.inf) -> Task:
    counts = of_tokens(leaning(3000, units, min(6, units // 2), seed, 3.0), units, 0)
    load = counts.load.astype(float)
    limit = over * rank_loads(load, balanced(load, ranks), ranks).max()
    return Task(counts.pairs, load, np.eye(ranks), limit)


def in_slots(task: Task) -> Array:
    return np.arange(len(task.load)) // (len(task.load) // task.ranks)


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("over", [1.02, np.inf])
def test_of_few_units_it_finds_the_best(ranks: int, over: float) -> None:
    for seed in range(3):
        task = a_task(16, ranks, seed, over)

        def cost(inside_SU: Array, task: Task = task) -> Array:
            worth = (inside_SU @ task.pairs * inside_SU).sum(1) / 2
            return np.where(inside_SU @ task.load > task.limit, np.inf, -worth)

        best = cheapest(16, ranks, ranks, cost, None)
        assert best is not None
        found = search(task, in_slots(task), 128, 0)[0]
        assert task.worth(found) == pytest.approx(task.worth(best), rel=2e-3)


def bisected(pairs_UU: Array, ranks: int) -> Array:
    """By networkx, half and half again."""
    rank_U = np.zeros(len(pairs_UU), np.int64)

    def divide(units: list[int], first: int, number: int) -> None:
        if number == 1:
            rank_U[units] = first
            return
        graph = networkx.Graph()
        for a in units:
            for b in units:
                if a < b:
                    graph.add_edge(a, b, weight=pairs_UU[a, b])
        halves = networkx.community.kernighan_lin_bisection(graph, weight="weight", seed=0)
        for place, half in enumerate(halves):
            divide(sorted(half), first + place * number // 2, number // 2)

    divide([*range(len(pairs_UU))], 0, ranks)
    return rank_U


@pytest.mark.parametrize("seed", range(3))
def test_it_keeps_more_together_than_a_librarys_bisection(seed: int) -> None:
    task = a_task(64, 8, seed)
    found = search(task, in_slots(task), 128, 0)[0]
    by_library = bisected(task.pairs, 8)
    assert task.worth(found) > task.worth(by_library)
    # Not for want of exchanges afterwards.
    assert task.worth(found) >= task.worth(improved(task, by_library, 0.0)) * 0.995


def test_planted_sets_are_found_under_a_limit() -> None:
    set_E = scattered(64, 8)
    counts = of_tokens(planted(20000, 64, 6, 0, 4.0, set_E), 64, 0)
    load = counts.load.astype(float)
    limit = rank_loads(load, set_E, 8).max()
    task = Task(counts.pairs, load, np.eye(8), limit)
    found = search(task, in_slots(task), 8, 0)[0]
    assert task.worth(found) == pytest.approx(task.worth(set_E))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(12, 3), (16, 4), (24, 8)]), st.booleans())
def test_every_partition_is_equal_and_within_the_limit(
    seed: int, sizes: tuple[int, int], in_nodes: bool
) -> None:
    units, ranks = sizes
    generator = np.random.default_rng(seed)
    pairs = generator.random((units, units))
    pairs = np.triu(pairs, 1) + np.triu(pairs, 1).T
    load = generator.zipf(1.8, units).astype(float).clip(max=1e4)
    kin = np.eye(ranks)
    if in_nodes and ranks % 2 == 0:
        kin += 9 * (np.arange(ranks)[:, None] // 2 == np.arange(ranks) // 2)
    limit = 1.02 * rank_loads(load, balanced(load, ranks), ranks).max()
    task = Task(pairs, load, kin, limit)
    found = search(task, generator.permutation(units) % ranks, 2, seed)
    for rank_U in found:
        assert np.bincount(rank_U, minlength=ranks).tolist() == [units // ranks] * ranks
        assert rank_loads(load, rank_U, ranks).max() <= limit
        # No exchange that is allowed brings more together.
        for a in range(units):
            for b in range(a):
                other = rank_U.copy()
                other[[a, b]] = other[[b, a]]
                assert not task.allows(other) or task.worth(other) <= task.worth(rank_U) + 1e-9
    worths = [task.worth(rank_U) for rank_U in found]
    assert worths == sorted(worths, reverse=True)
    again = search(task, np.arange(units) % ranks, 2, seed)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(again, search(task, np.arange(units) % ranks, 2, seed), strict=True)
    )


def test_what_stays_above_the_limit_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grove_megatron.placing.search._RAISES", 0)
    task = a_task(16, 4, 0, over=1.0)
    found = search(task, in_slots(task), 8, 0)
    assert found
    assert all(task.allows(rank_U) for rank_U in found)


@given(st.lists(st.integers(0, 1000), min_size=8, max_size=8), st.sampled_from([1, 2, 4, 8]))
def test_the_greedy_balancer_gives_every_rank_as_many(load: list[int], ranks: int) -> None:
    rank_U = balanced(np.array(load, float), ranks)
    assert np.bincount(rank_U, minlength=ranks).tolist() == [8 // ranks] * ranks
    heaviest = rank_loads(np.array(load, float), rank_U, ranks).max()
    # Heaviest first is within a third of the mean, or of the heaviest one.
    assert heaviest <= max(load) + sum(load) / ranks


def test_the_greedy_balancer_takes_the_heaviest_first() -> None:
    assert balanced(np.array([5.0, 1, 4, 2, 3, 3]), 2).tolist() == [0, 0, 1, 1, 1, 0]
