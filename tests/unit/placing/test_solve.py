"""A layer placed: what is saved, what is claimed, and the load."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from grove_megatron.placing.counts import Array, Evidence, of_tokens, summed
from grove_megatron.placing.greedy import balanced, rank_loads
from grove_megatron.placing.rows import rows
from grove_megatron.placing.solve import Goal, Placed, place
from tests.unit.placing.routings import (
    evidence,
    leaning,
    planted,
    scattered,
    sums_of,
    uniform,
    zipf,
)

NODE = 9.0


def placed(known: Evidence, goal: Goal) -> Placed:
    found = place(known, goal, np.arange(len(known.parts[0].load)))
    assert found is not None
    return found


def ranks_of(order: Array, ranks: int) -> Array:
    rank_U = np.empty(len(order), np.int64)
    rank_U[np.array(order)] = np.arange(len(order)) // (len(order) // ranks)
    return rank_U


def counted(chosen_TK: Array, experts: int, groups: int, rank_U: Array, ranks: int) -> float:
    return rows(of_tokens(chosen_TK, experts, groups), rank_U, ranks).even


# Experts, groups, experts per token, ranks, how much a token prefers its set.
PLANTED = [
    pytest.param((16, 0, 4, 4, 3.0), id="complete"),
    pytest.param((32, 16, 4, 4, 4.0), id="complete-groups"),
    pytest.param((64, 0, 6, 8, 4.0), id="searched"),
    pytest.param((128, 64, 8, 8, 4.0), id="searched-groups"),
]


@pytest.mark.parametrize("is_trace", [True, False], ids=["trace", "record"])
@pytest.mark.parametrize("sizes", PLANTED)
def test_a_planted_saving_is_recovered(
    sizes: tuple[int, int, int, int, float], is_trace: bool
) -> None:
    """Nine tenths of it, by tokens that nobody has seen, with the load of a greedy balancer."""
    experts, groups, topk, ranks, strength = sizes
    units = groups or experts
    set_E = scattered(experts, ranks, experts // units)
    known = evidence(planted(16000, experts, topk, 0, strength, set_E), experts, groups)
    found = placed(known if is_trace else sums_of(known), Goal(ranks))
    assert found.verdict == "saves"
    assert found.order is not None
    assert found.complete == (units <= 16)
    fresh = planted(16000, experts, topk, 77, strength, set_E)
    now, new, best = (
        counted(fresh, experts, groups, rank_U, ranks)
        for rank_U in (
            np.arange(units) // (units // ranks),
            ranks_of(found.order, ranks),
            set_E[:: experts // units],
        )
    )
    assert now - new >= 0.9 * (now - best)
    load = summed(known.parts).load.astype(float)
    heaviest = rank_loads(load, ranks_of(found.order, ranks), ranks).max()
    assert heaviest <= 1.02 * rank_loads(load, balanced(load, ranks), ranks).max()
    assert found.after.load == pytest.approx(heaviest / load.sum() * ranks)
    # What is said of it holds for them too.
    assert found.after.ranks.low * 0.97 <= new <= found.after.ranks.high * 1.03
    assert now - new >= found.saved - 8 * found.deviation


@pytest.mark.parametrize("is_trace", [True, False], ids=["trace", "record"])
@pytest.mark.parametrize(
    ("sizes", "goal"),
    [
        pytest.param((64, 32, 6), Goal(8), marks=pytest.mark.long),
        pytest.param((32, 0, 4), Goal(8, per_node=2, node_cost=NODE), marks=pytest.mark.long),
        ((24, 0, 4), Goal(4, per_node=2, node_cost=NODE)),
        ((16, 8, 4), Goal(4)),
        ((16, 0, 2), Goal(2)),
    ],
)
def test_nothing_is_claimed_of_uniform_routing(
    sizes: tuple[int, int, int], goal: Goal, is_trace: bool
) -> None:
    experts, groups, topk = sizes
    for seed in range(5):
        known = evidence(uniform(1500, experts, topk, seed), experts, groups)
        found = placed(known if is_trace else sums_of(known), goal)
        assert found.order is None
        assert found.verdict in ("noise", "kept")


def test_what_chose_does_not_judge() -> None:
    """By the tokens that it was chosen by, an order of noise saves rows."""
    others, own = [], []
    for seed in range(8):
        known = evidence(uniform(400, 16, 4, seed), 16, parts=2)
        others.append(placed(known, Goal(4)).saved)
        own.append(placed(replace(known, parts=[known.parts[0]] * 2), Goal(4)).saved)
    assert min(own) > 0.02
    assert abs(np.mean(others)) < 0.05


def test_the_choice_is_the_best_of_all() -> None:
    """Of the tokens that choose, with every partition within the limit counted."""
    # The few that all want would share a rank, if its load were not looked at.
    known = evidence(zipf(2000, 8, 3, 3), 8, parts=2)
    goal = Goal(2)
    found = placed(replace(known, parts=[known.parts[0]] * 2), goal)
    load = known.parts[0].load * 2.0
    limit = 1.02 * rank_loads(load, balanced(load, 2), 2).max()
    counts = []
    for chosen in combinations(range(8), 4):
        rank_U = np.isin(np.arange(8), chosen).astype(int)
        if rank_loads(load, rank_U, 2).max() <= limit:
            counts.append(rows(known.parts[0], rank_U, 2).even)
    assert found.after.ranks.even == pytest.approx(min(counts))


def test_nodes_go_first() -> None:
    """Sets of a node's units, and no more to be had inside of nodes."""
    set_E = scattered(32, 2)
    known = evidence(planted(8000, 32, 4, 0, 4.0, set_E), 32)
    found = placed(known, Goal(8, per_node=4, node_cost=NODE))
    assert found.order is not None
    assert found.before.nodes is not None
    assert found.after.nodes is not None
    node_U = ranks_of(found.order, 2)
    assert (node_U == set_E).all() or (node_U == 1 - set_E).all()
    saved = found.before.nodes.even - found.after.nodes.even
    of_ranks = found.before.ranks.even - found.after.ranks.low
    assert found.saved == pytest.approx(NODE * saved + of_ranks)


def test_load_that_is_far_above_the_balancers_is_balanced_whatever_the_rows() -> None:
    """The first ranks hold the experts that everybody wants, and so few rows are sent."""
    known = evidence(zipf(8000, 64, 6, 0), 64)
    found = placed(known, Goal(8))
    assert found.verdict == "balances"
    assert found.before.load > 2
    assert found.after.load <= 1.02 * found.greedy
    assert found.saved < 0
    # Who does not want that says so.
    found = placed(known, Goal(8, over_greedy=10.0))
    assert found.verdict in ("kept", "noise")


def test_an_order_that_is_good_already_is_kept() -> None:
    set_E = np.arange(16) // 4
    found = placed(evidence(planted(4000, 16, 3, 0, 4.0, set_E), 16), Goal(4))
    assert (found.verdict, found.order) == ("kept", None)


def test_a_saving_that_comes_and_goes_is_not_claimed() -> None:
    """Sets that are others in every part: pairs of one part say nothing of the next."""
    parts = [
        of_tokens(planted(1000, 32, 4, n, 4.0, scattered(32, 4, seed=n)), 32, 0) for n in range(8)
    ]
    assert placed(Evidence(parts), Goal(4)).order is None


@pytest.mark.long
def test_tokens_that_are_alike_are_no_proof() -> None:
    """A hundred of each: what looks sure of single tokens differs from part to part."""
    for seed in range(12):
        known = evidence(np.repeat(uniform(320, 16, 3, seed), 100, axis=0), 16)
        assert placed(known, Goal(4)).order is None


def test_a_layer_without_tokens_in_one_half_is_left() -> None:
    none = of_tokens(np.full((5, 2), -1)[:0], 8, 0)
    some = of_tokens(uniform(50, 8, 2, 0), 8, 0)
    assert place(Evidence([some, none]), Goal(2), np.arange(8)) is None


def test_one_seed_gives_one_placement() -> None:
    known = evidence(leaning(1000, 32, 6, 0, 3.0), 32)
    assert placed(known, Goal(8, seed=3)) == placed(known, Goal(8, seed=3))


def test_what_is_in_use_is_where_it_begins() -> None:
    """From the order that is best already nothing is to be had."""
    known = evidence(planted(8000, 32, 4, 0, 4.0, scattered(32, 4)), 32)
    first = placed(known, Goal(4))
    assert first.order is not None
    again = place(known, Goal(4), np.array(first.order))
    assert again is not None
    assert (again.verdict, again.order) == ("kept", None)
    assert again.before.ranks.even == pytest.approx(first.after.ranks.even)
