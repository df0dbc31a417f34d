from dataclasses import replace
from math import ceil, comb

import pytest

from grove_megatron.planner.inputs import Layout, Sizes
from grove_megatron.planner.peak.rank_sizes import RankSizes, expected_load
from grove_megatron.planner.traffic import rows_per_token

from ..models import GROVE_33B, training


def ranked(layout: Layout | None = None, **settings: object) -> RankSizes:
    chosen = training(**settings)
    return RankSizes(Sizes(model=GROVE_33B, layout=layout or Layout(), training=chosen))


@pytest.mark.parametrize(("tokens", "chance", "most"), [(512, 1 / 16, 32), (1000, 1 / 16, 75)])
def test_the_load_up_to_a_capacity_is_that_of_a_binomial(tokens, chance, most):
    exact = sum(
        min(n, most) * comb(tokens, n) * chance**n * (1 - chance) ** (tokens - n)
        for n in range(tokens + 1)
    )
    variance = tokens * chance * (1 - chance)
    assert expected_load(tokens * chance, variance, most) == pytest.approx(exact, rel=2e-3)


def test_a_load_that_does_not_vary_is_cut():
    assert (expected_load(5, 0, 3), expected_load(2, 0, 3)) == (3, 2)


def test_a_capacity_drops_pairs_and_padding_fills_all_places():
    whole, dropped, padded = (
        ranked(sequence_length=512, **settings).pairs
        for settings in (
            {},
            {"capacity_factor": 1.0},
            {"capacity_factor": 1.3, "padded_to_capacity": True},
        )
    )
    assert whole == 512 * 8
    assert 0.9 * whole < dropped < whole
    assert padded == pytest.approx(128 * ceil(512 * 8 / 128 * 1.3))


def test_rows_and_pairs_grow_with_the_imbalance_and_what_is_sent_does_not():
    layout = Layout(expert=8, world=8)
    even, full = ranked(layout), ranked(layout, imbalance=1.4, expert_imbalance=2.0)
    assert (full.pairs, full.rows, full.group_pairs) == pytest.approx(
        (1.4 * even.pairs, 1.4 * even.rows, 1.4 * even.group_pairs)
    )
    assert (full.sent_pairs, full.sent_rows) == (even.sent_pairs, even.sent_rows)
    assert full.largest == pytest.approx(2 * full.pairs / 16)


@pytest.mark.parametrize(
    ("changes", "sent", "received"),
    [
        ({}, rows_per_token(GROVE_33B, Layout(expert=8, world=8)), None),
        ({"row_per_expert": True}, 8, None),
        ({"all_gather": True}, 1, 8),
    ],
)
def test_rows_of_every_dispatcher(changes, sent, received):
    layout = replace(Layout(expert=8, world=8), **changes)
    found = ranked(layout)
    assert found.sent_rows == pytest.approx(64 * sent)
    assert found.rows == pytest.approx(64 * (received or sent))


def test_no_rank_has_more_rows_than_there_are_tokens():
    layout = Layout(expert=8, world=8)
    found = ranked(layout, imbalance=1.9)
    assert found.rows == 64 * 8
    assert found.pairs == pytest.approx(1.9 * ranked(layout).pairs)
    # All experts are on the one rank, which therefore has the mean.
    assert ranked(imbalance=1.9).pairs == ranked().pairs


def test_what_a_capacity_leaves_of_a_token_meets_fewer_ranks_and_groups():
    layout = Layout(expert=4, world=4)
    whole, half = (
        ranked(layout, sequence_length=4096, capacity_factor=factor) for factor in (8.0, 0.5)
    )
    assert half.sent_pairs == pytest.approx(whole.sent_pairs / 2, rel=0.01)
    # 4 of 128 experts at random meet 2.76 of 4 ranks and 3.95 of 64 groups.
    assert half.sent_rows / 4096 == pytest.approx(2.76, rel=0.01)
    assert half.group_pairs / 4096 == pytest.approx(3.95, rel=0.01)
