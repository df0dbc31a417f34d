"""Intervals put together keep their sums."""

from dataclasses import replace

import numpy as np
import pytest

from grove_megatron.report.record import ARRAYS, Record
from grove_megatron.report.series import (
    binned,
    edges,
    ends,
    of_one_model,
    resumed,
    with_gaps,
)
from tests.unit.report.intervals import RUN, a_training, interval


def test_bins_are_sums_of_neighbours_of_one_run() -> None:
    first = list(a_training(RUN, 7, tokens=5))
    again = replace(RUN)
    second = [replace(i, run=again, iteration=i.iteration + 70) for i in first[:2]]
    bins = binned([*first, *second], most=3)
    assert [(b.iteration, b.iterations) for b in bins] == [(30, 30), (60, 30), (70, 10), (90, 20)]
    for name in (*ARRAYS, "coactivation"):
        parts = [getattr(i, name) for i in first[:3]]
        assert np.array_equal(getattr(bins[0], name), sum(parts))
    assert bins[0].losses["lm loss"] == pytest.approx(
        sum(i.losses["lm loss"] for i in first[:3]) / 3
    )
    assert bins[0].bias is first[2].bias
    assert resumed(bins) == [70]


def test_few_intervals_stay_as_they_are() -> None:
    intervals = list(a_training(RUN, 3, tokens=5))
    assert binned(intervals, most=3) == intervals
    assert ends(intervals).tolist() == [10, 20, 30]
    assert edges(intervals).tolist() == [0, 10, 20, 30]


def test_a_gap_in_iterations_is_a_column_of_its_own() -> None:
    # 31 to 40 and 51 to 70 were not recorded, as where a disk was full.
    first = list(a_training(RUN, 5, tokens=5))
    intervals = [i for i in first if i.iteration != 40] + [interval(iteration=80)]
    assert ends(intervals).tolist() == [10, 20, 30, 50, 80]
    assert edges(intervals).tolist() == [0, 10, 20, 30, 40, 50, 70, 80]
    columns = with_gaps(intervals, np.arange(5))
    assert np.array_equal(columns, [0, 1, 2, np.nan, 3, np.nan, 4], equal_nan=True)
    heights = with_gaps(intervals, np.ones((5, 2)), 0)
    assert heights.sum(1).tolist() == [2, 2, 2, 0, 2, 0, 2]
    # A sum over a gap would have lost its place.
    bins = binned(intervals, most=1)
    assert [(b.iteration, b.iterations) for b in bins] == [(30, 30), (50, 10), (80, 10)]


def test_a_loss_that_began_later_is_the_mean_of_where_it_was() -> None:
    one = interval(losses={"lm loss": 1.0})
    two = interval(iteration=20, losses={"lm loss": 3.0, "z_loss": 5.0})
    (both,) = binned([one, two], most=1)
    assert both.losses == {"lm loss": 2.0, "z_loss": 5.0}


def test_pairs_of_local_experts_are_summed_like_the_others() -> None:
    run = replace(RUN, local={"zero": 2})
    parts = [
        interval(run=run, iteration=10 * n, local=np.array([[n, 0], [1, n]])) for n in (1, 2, 3)
    ]
    (both,) = binned(parts, most=1)
    assert both.local is not None
    assert both.local.tolist() == [[6, 0], [3, 6]]
    (both,) = binned([interval(), interval(iteration=20)], most=1)
    assert both.local is None


def test_another_model_in_the_same_folder_is_left_out() -> None:
    other = interval(run=replace(RUN, topk=1), tokens=([[1]], [[2]]))
    moved = replace(RUN, ranks=4)
    record = Record(
        (other.run, RUN, moved),
        (other, interval(iteration=20), interval(iteration=30, run=moved)),
    )
    assert [i.iteration for i in of_one_model(record)] == [20, 30]
