"""Rows that sums tell, beside those of every token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grove_megatron.placing.counts import Array, of_tokens, summed
from grove_megatron.placing.rows import rows, shares
from grove_megatron.placing.search import Task, search
from grove_megatron.planner.traffic import expected_distinct
from tests.unit.placing.routings import (
    evidence,
    leaning,
    limited,
    planted,
    scattered,
    sums_of,
    uniform,
    zipf,
)


def in_slots(units: int, sets: int) -> Array:
    return np.arange(units) // (units // sets)


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4, 8]))
def test_rows_of_known_tokens_are_counted(seed: int, sets: int) -> None:
    chosen_TK = uniform(30, 16, 3, seed)
    set_U = np.random.default_rng(seed).permutation(in_slots(8, sets))
    found = rows(of_tokens(chosen_TK, 16, 8), set_U, sets)
    by_hand = [len({int(set_U[e // 2]) for e in chosen}) for chosen in chosen_TK]
    assert found.even == found.low == found.high == pytest.approx(np.mean(by_hand))


@pytest.mark.parametrize(
    ("experts", "groups", "sets"),
    [*((128, 0, n) for n in (2, 4, 8, 16, 32, 64)), (128, 64, 8), (32, 8, 4)],
)
def test_sums_of_uniform_routing_tell_what_is_expected(
    experts: int, groups: int, sets: int
) -> None:
    known = evidence(uniform(20000, experts, 8, 1), experts, groups, parts=1)
    (sums,) = sums_of(known).parts
    found = rows(sums, in_slots(groups or experts, sets), sets)
    expected = expected_distinct(experts, 8, sets)
    assert found.low == pytest.approx(expected, rel=0.01)
    assert found.high == pytest.approx(expected, rel=0.01)


SCATTERED = scattered(64, 8)
ROUTINGS = {
    "uniform": lambda seed: uniform(8000, 64, 6, seed),
    "zipf": lambda seed: zipf(8000, 64, 6, seed),
    **{
        f"planted-{s}": lambda seed, s=s: planted(8000, 64, 6, seed, s, SCATTERED)
        for s in (1, 2, 3, 4, 6)
    },
    **{f"leaning-{s}": lambda seed, s=s: leaning(8000, 64, 6, seed, s) for s in (1, 2, 4)},
    **{
        f"limited-{b}-{m}": lambda seed, b=b, m=m: limited(8000, 64, 6, seed, b, m)
        for b, m in ((8, 2), (8, 3), (4, 1), (4, 2), (16, 2))
    },
}
_TOO_MANY, _HIGHEST = 1.35, 1.47
"""So many times the truth the estimate and its upper end can be, where tokens are limited to blocks
of experts."""


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("groups", [0, 32])
def test_the_truth_lies_between_two_distributions(routing: str, groups: int) -> None:
    """In order, and in an order that was chosen by other tokens; to a hundredth."""
    choosing, judging = (
        evidence(ROUTINGS[routing](seed), 64, groups, parts=1).parts[0] for seed in (1, 1001)
    )
    units = groups or 64
    task = Task(choosing.pairs, choosing.load.astype(float), np.eye(8), np.inf)
    in_order = in_slots(units, 8)
    for set_U in (in_order, search(task, in_order, 4, 0)[0]):
        is_in_order = set_U is in_order
        truth = rows(judging, set_U, 8)
        told = rows(summed(sums_of(evidence(ROUTINGS[routing](1001), 64, groups)).parts), set_U, 8)
        assert truth.even <= told.high * 1.01
        if routing.startswith("limited"):
            assert truth.even <= told.even <= truth.even * _TOO_MANY
            assert told.high <= truth.even * _HIGHEST
        else:
            assert told.low * 0.99 <= truth.even
            assert told.even == pytest.approx(truth.even, rel=0.01 if is_in_order else 0.16)
        assert told.deviation >= truth.deviation * 0.9


def test_of_blocks_kept_together_the_estimate_is_too_high() -> None:
    """By more than the range says: what ``grove place`` warns of is there."""
    known = evidence(limited(8000, 64, 6, 1, 8, 2), 64, parts=1)
    (sums,) = sums_of(known).parts
    told, truth = rows(sums, in_slots(64, 8), 8), rows(known.parts[0], in_slots(64, 8), 8)
    assert truth.even == 2
    assert told.low > 1.3 * truth.even
    # Of an order that does not keep them it is right.
    mixed = np.random.default_rng(0).permutation(in_slots(64, 8))
    assert rows(sums, mixed, 8).even == pytest.approx(rows(known.parts[0], mixed, 8).even, rel=0.01)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([2, 4, 8]))
def test_rows_are_the_sum_of_their_sets(seed: int, is_known: bool, sets: int) -> None:
    known = evidence(zipf(200, 16, 3, seed), 16, 8, parts=1)
    (counts,) = (known if is_known else sums_of(known)).parts
    set_U = np.random.default_rng(seed).permutation(in_slots(8, sets))
    in_set_US = set_U[:, None] == np.arange(sets)
    found = rows(counts, set_U, sets)
    assert shares(counts, in_set_US).sum() == pytest.approx((found.low + found.high) / 2)
    assert 0 < found.low <= found.even <= found.high <= sets


@pytest.mark.parametrize("strength", [3, 4, 6])
def test_tokens_that_belong_to_a_set_are_told_by_the_higher(strength: int) -> None:
    known = evidence(planted(8000, 64, 6, 1, strength, SCATTERED), 64, parts=1)
    (sums,) = sums_of(known).parts
    truth = rows(known.parts[0], SCATTERED, 8).even
    assert rows(sums, SCATTERED, 8).high == pytest.approx(truth, rel=0.03)


def test_all_tokens_alike_do_not_make_it_sure() -> None:
    alike = of_tokens(np.zeros((4, 1), int), 4, 0)
    assert rows(alike, in_slots(4, 2), 2).deviation >= 0.5
