import itertools
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from grove_megatron.planner.inputs import Layout
from grove_megatron.planner.traffic import (
    busiest,
    distinct_range,
    expected_distinct,
    expected_sets,
    groups_per_token,
    nodes_per_token,
    rows_per_token,
)

from .models import GROVE_33B, QWEN3_30B


@st.composite
def routings(draw: st.DrawFn) -> tuple[int, int, int]:
    """Experts, how many of them are selected, and in how many sets they lie."""
    sets, size = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    return sets * size, draw(st.integers(1, sets * size)), sets


def met(experts: int, selected: int, sets: int) -> list[int]:
    """Sets met by every selection there is."""
    size = experts // sets
    choices = itertools.combinations(range(experts), selected)
    return [len({expert // size for expert in choice}) for choice in choices]


@given(routing=routings())
def test_expectation_and_bounds_are_those_of_all_selections(routing):
    counts = met(*routing)
    # Both are quotients of small integers.
    assert expected_distinct(*routing) == pytest.approx(sum(counts) / len(counts), rel=1e-12)
    assert distinct_range(*routing) == (min(counts), max(counts))


@pytest.mark.parametrize(
    ("groups", "expected", "fewest"), [(64, 7.7795, 4), (32, 7.3594, 2), (16, 6.5965, 1)]
)
def test_groups_of_the_papers_three_configurations(groups, expected, fewest):
    # Four decimals are given.
    assert expected_distinct(128, 8, groups) == pytest.approx(expected, abs=5e-5)
    assert distinct_range(128, 8, groups) == (fewest, 8)


@pytest.mark.parametrize(
    ("ranks", "rows"), [(2, 1.99), (4, 3.63), (8, 5.34), (16, 6.60), (32, 7.36), (64, 7.78)]
)
def test_rows_of_top_8_of_128(ranks, rows):
    layout = Layout(expert=ranks, world=64)
    assert rows_per_token(GROVE_33B, layout) == pytest.approx(rows, abs=5e-3)


def test_a_plain_model_has_no_groups_to_meet():
    assert groups_per_token(QWEN3_30B) == 0
    assert groups_per_token(GROVE_33B) == expected_distinct(128, 8, 64)


def test_nodes_are_met_as_ranks_are():
    assert nodes_per_token(GROVE_33B, 4) == expected_distinct(128, 8, 4)
    assert nodes_per_token(GROVE_33B, 1) == 1
    dense = replace(GROVE_33B, moe_layers=(False,) * 48, num_experts=0, num_groups=0)
    assert nodes_per_token(dense, 4) == 0


def test_tokens_with_other_numbers_of_experts_are_weighed():
    # Half of them have one expert, half two of four in two sets: a third of the pairs share one.
    assert expected_sets(4, 2, {0: 0.0, 1: 0.5, 2: 0.5}) == pytest.approx(0.5 + 0.5 * (2 - 1 / 3))


@given(
    sets=st.sampled_from((1, 2, 3, 4, 6, 12)),
    blocks=st.sampled_from((2, 3, 4, 6)),
    data=st.data(),
)
def test_limited_routing_meets_what_all_its_selections_meet(sets, blocks, data):
    assume(blocks % sets == 0 or sets % blocks == 0)
    each = 12 // blocks
    chosen = data.draw(st.integers(1, blocks))
    selected = data.draw(st.integers(1, min(4, each * chosen)))
    model = replace(QWEN3_30B, num_experts=12, topk=selected, blocks=blocks, blocks_chosen=chosen)
    counts = []
    for some in itertools.combinations(range(blocks), chosen):
        among = [expert for expert in range(12) if expert // each in some]
        counts += [
            len({expert // (12 // sets) for expert in choice})
            for choice in itertools.combinations(among, selected)
        ]
    found = rows_per_token(model, Layout(expert=sets, world=sets))
    assert found == pytest.approx(sum(counts) / len(counts), rel=1e-12)


def test_deepseeks_limit_halves_the_ranks_of_a_token():
    # 4 of 8 blocks of 32 experts, and 8 experts among them.
    model = replace(QWEN3_30B, num_experts=256, topk=8, blocks=8, blocks_chosen=4)
    assert rows_per_token(model, Layout(expert=8, world=8)) == pytest.approx(3.629, abs=5e-4)
    assert rows_per_token(model, Layout(expert=16, world=16)) == pytest.approx(5.339, abs=5e-4)


@pytest.mark.parametrize(
    ("ranks", "asked", "found"), [(1, 3.0, 1.0), (2, 1.3, 1.3), (2, 9.0, 2.0), (64, 99.0, 16.0)]
)
def test_no_rank_is_busier_than_all_tokens_make_it(ranks, asked, found):
    # With 64 ranks a token has at most 2 of its 8 experts on one.
    assert busiest(QWEN3_30B, Layout(expert=ranks, world=ranks), asked) == pytest.approx(found)
