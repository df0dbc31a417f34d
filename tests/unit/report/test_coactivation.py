"""What a report says of units met together."""

from dataclasses import replace

import numpy as np
import pytest

from grove_megatron.placing.counts import of_tokens
from grove_megatron.report.coactivation import (
    blocks,
    counted_pairs,
    expected_pairs,
    share_inside,
    strongest_layer,
    strongest_pairs,
    together_order,
)
from grove_megatron.report.figures import draw_all
from grove_megatron.report.view import View
from tests.unit.placing.routings import a_run, an_interval, planted, scattered, uniform
from tests.unit.report.intervals import RUN, interval


def test_uniform_routing_is_what_is_expected() -> None:
    together = of_tokens(uniform(40000, 16, 4, 0), 16, 0).together
    expected = expected_pairs(together)
    assert expected.sum() == pytest.approx(counted_pairs(together).sum())
    assert not expected.diagonal().any()
    off = ~np.eye(16, dtype=bool)
    assert together[off] == pytest.approx(expected[off], rel=0.1)


def test_shares_are_of_pairs_inside_of_parts() -> None:
    pairs = np.zeros((4, 4))
    pairs[0, 2] = pairs[2, 0] = 3
    pairs[0, 1] = pairs[1, 0] = 1
    assert share_inside(pairs, np.array([0, 1, 2, 3]), 2) == 0.25
    assert share_inside(pairs, np.array([2, 0, 1, 3]), 2) == 0.75
    assert np.isnan(share_inside(0 * pairs, np.arange(4), 2))


def test_sets_lie_in_one_part_when_reordered() -> None:
    sets = scattered(32, 4)
    together = of_tokens(planted(4000, 32, 4, 0, 4.0, sets), 32, 0).together
    order = together_order(together, 4)
    assert sorted(order) == [*range(32)]
    assert [len({int(s) for s in part}) for part in sets[order].reshape(4, 8)] == [1] * 4


def test_the_strongest_pairs_are_those_furthest_above_expectation() -> None:
    # All want 6 and 7, which is why they are met together.
    wanted = [[a, b] for a in (6, 7) for b in range(6)] * 20
    tokens = np.array([[0, 5]] * 60 + [[a, b] for a in range(8) for b in range(a)] * 4 + wanted)
    together = of_tokens(tokens, 8, 0).together
    (first, second, counted, expected), *_ = strongest_pairs(together, 3)
    assert (first, second, counted) == (0, 5, 64)
    assert expected < 40
    assert len(strongest_pairs(together, 3)) == 3


def test_the_strongest_layer_gains_most() -> None:
    sets = scattered(16, 4)
    layers = np.stack(
        [
            of_tokens(chosen, 16, 0).together
            for chosen in (
                uniform(2000, 16, 3, 0),
                planted(2000, 16, 3, 0, 4.0, sets),
                planted(2000, 16, 3, 0, 1.0, sets),
            )
        ]
    )
    assert strongest_layer(layers, [together_order(t, 4) for t in layers], 4) == 1
    nothing = 0 * layers
    assert strongest_layer(nothing, [np.arange(16)] * 3, 4) == 0


def test_parts_are_the_ranks_or_some() -> None:
    one = interval()
    assert blocks(one) == RUN.ranks == 2
    for groups, parts in ((4, 4), (0, 8)):
        assert blocks(replace(one, run=replace(RUN, ranks=1, groups=groups))) == parts


def test_the_figure_says_what_it_shows() -> None:
    run = a_run(16, 8, 4, layers=2)
    sets = scattered(16, 4, 2)
    made = an_interval(run, [uniform(2000, 16, 4, 0), planted(2000, 16, 4, 0, 4.0, sets)], 10)
    (drawn,) = (
        one for one in draw_all(View(name="it", intervals=[made])) if one.name == "coactivation"
    )
    assert drawn.figure is not None
    left, middle, right, bar = drawn.figure.axes
    assert (left.get_title(loc="left"), middle.get_title(loc="left")) == (
        "layer 2",
        "the same, in 4 parts",
    )
    assert bar.get_ylabel() == "tokens / expected"
    assert [line.get_label() for line in right.lines] == [
        *("if independent", "as they are", "reordered"),
    ]
    reordered = right.lines[2].get_xdata()
    assert f"{reordered[1]:.1%} when reordered" in drawn.read
    a, b = np.argwhere(sets[::2] == sets[0])[:2, 0]
    assert sets[2 * a] == sets[2 * b]
    (pairs,) = (text for text in drawn.read.split(". ") if text.startswith("Above all, groups"))
    first, second = (
        int(word) for word in pairs.split(" by ")[0].split("groups ")[1].split(" and ")
    )
    assert sets[2 * first] == sets[2 * second]


def test_what_was_not_counted_has_no_figure() -> None:
    made = interval(coactivation=None)
    (drawn,) = (
        one for one in draw_all(View(name="it", intervals=[made])) if one.name == "coactivation"
    )
    assert drawn.figure is None
    assert "--grove-metrics-coactivation" in drawn.read
