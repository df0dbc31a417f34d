"""Complete search, beside every partition written down."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grove_megatron.placing.exact import cheapest, subsets


def partitions(units: tuple[int, ...], size: int) -> Iterator[list[tuple[int, ...]]]:
    """Every way to divide units into sets of a size."""
    if not units:
        yield []
        return
    first, *others = units
    for more in combinations(others, size - 1):
        rest = tuple(u for u in others if u not in more)
        for of_rest in partitions(rest, size):
            yield [(first, *more), *of_rest]


def in_nodes(parts: list[tuple[int, ...]], per_node: int) -> Iterator[list[tuple[int, ...]]]:
    for nodes in partitions(tuple(range(len(parts))), per_node):
        yield [tuple(sorted(u for n in node for u in parts[n])) for node in nodes]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(4, 2, 1), (6, 3, 3), (6, 2, 2), (8, 4, 4), (8, 4, 2), (8, 8, 4), (9, 3, 3)]),
    st.booleans(),
)
def test_no_partition_is_cheaper(seed: int, sizes: tuple[int, int, int], some: bool) -> None:
    units, ranks, per_node = sizes
    has_nodes = per_node < ranks
    weights = np.random.default_rng(seed).normal(size=(3, units, units))

    def rank_cost(inside_SU: np.ndarray) -> np.ndarray:
        cost = (inside_SU @ weights[0] * inside_SU).sum(1)
        # Some sets are not allowed.
        return np.where((inside_SU @ weights[1][0] > 1) & some, np.inf, cost)

    def node_cost(inside_SU: np.ndarray) -> np.ndarray:
        return (inside_SU @ weights[2] * inside_SU).sum(1)

    def cost(sets: list[tuple[int, ...]], of: object) -> float:
        inside = np.zeros((len(sets), units), bool)
        for row, one in zip(inside, sets, strict=True):
            row[list(one)] = True
        return float(of(inside).sum())  # type: ignore[operator]

    costs = []
    for parts in partitions(tuple(range(units)), units // ranks):
        of_ranks = cost(parts, rank_cost)
        nodes = [cost(n, node_cost) for n in in_nodes(parts, per_node)] if has_nodes else [0.0]
        costs.append(of_ranks + min(nodes))
    found = cheapest(units, ranks, per_node, rank_cost, node_cost if has_nodes else None)
    if found is None:
        assert not np.isfinite(min(costs))
        return
    sets = [tuple(np.flatnonzero(found == r).tolist()) for r in range(ranks)]
    assert {len(one) for one in sets} == {units // ranks}
    total = cost(sets, rank_cost)
    if has_nodes:
        of_node = [
            tuple(np.flatnonzero(found // per_node == n).tolist()) for n in range(ranks // per_node)
        ]
        total += cost(of_node, node_cost)
    assert total == pytest.approx(min(costs))


def test_sixteen_units_have_room() -> None:
    """The best pairs of a ring are known: neighbours."""
    ring = np.roll(np.eye(16), 1, axis=1)
    ring = ring + ring.T
    for ranks in (2, 4, 8):
        found = cheapest(16, ranks, ranks, lambda s: -(s @ ring * s).sum(1) / 2, None)
        assert found is not None
        inside = sum(found[u] == found[(u + 1) % 16] for u in range(16))
        assert inside == 16 - ranks


def test_sets_are_all_of_their_size() -> None:
    assert subsets(5, 2).sum(1).tolist() == [2] * 10
    assert len({tuple(row) for row in subsets(6, 3).tolist()}) == 20
