"""Figures of runs beside one another: over which iterations, and of which seeds."""

import json
from dataclasses import replace

import numpy as np
import pytest

from grove_megatron.report.compared import compared, spread
from grove_megatron.report.compared_json import as_json
from grove_megatron.report.measures import numbers
from grove_megatron.report.view import View
from tests.unit.report.intervals import RUN, interval
from tests.unit.report.jobs import a_run, a_view


def test_figures_are_of_the_last_tenth_of_the_shortest_run() -> None:
    long = a_view("long", [9.0] * 37 + [1.0, 2.0, 6.0])
    short = a_view("short", [9.0] * 27 + [2.0, 4.0, 3.0], run=a_run("b", lr=2))
    of = compared([long, short])
    assert of.window == 30
    one, two = of.every_row
    assert (one.first, one.last) == (371, 400)
    assert one.figures["loss"] == pytest.approx(3)
    assert (two.first, two.last) == (271, 300)
    assert two.figures["loss"] == pytest.approx(3)


def test_runs_that_reported_at_other_intervals_are_measured_over_as_many_iterations() -> None:
    seldom = a_view("seldom", [1.0] * 2, every=40)
    often = a_view("often", [9.0] * 40 + [2.0] * 40, run=a_run("b"), every=1)
    of = compared([seldom, often])
    assert of.window == 40
    assert [(row.first, row.last) for row in of.every_row] == [(41, 80)] * 2
    assert of.every_row[1].figures["loss"] == 2


def test_what_is_counted_is_counted_over_all_of_them() -> None:
    """Two experts that are idle by turns are not dead, and two peaks are balance."""
    parts = [
        interval(([[0, 1], [2, 3]], [[0, 4]]), iteration=10),
        interval(([[4, 5], [6, 7]], [[1, 5]]), iteration=20),
    ]
    view = View(name="it", intervals=[replace(p, iterations=10) for p in parts])
    long = replace(view, intervals=[replace(p, iteration=p.iteration + 180) for p in parts])
    (row,) = compared([long]).every_row
    assert (row.first, row.last) == (181, 200)
    assert row.figures["dead_experts_total"] == 0 + 4
    assert row.figures["max_vio"] == (0 + 1) / 2
    assert row.figures["parameters"] == sum(RUN.parameters)


def test_layouts_are_not_mixed() -> None:
    alone = a_run("b", sizes={"ranks": 1})
    one, two = a_view("x", [1.0] * 39), a_view("x", [5.0], run=alone)
    last = replace(two.last, iteration=400)
    (row,) = compared([View(name="x", intervals=[*one.intervals, last])]).every_row
    assert (row.first, row.last) == (391, 400)
    assert row.figures["rows_per_token"] == numbers(last)["rows_per_token"]


def test_losses_are_compared_at_the_last_iteration_that_all_have() -> None:
    long = a_view("long", [7.0, 5.0, 4.0, 1.0], validation={20: 6.0, 40: 2.0})
    other = a_view("other", [8.0, 3.0], every=15, run=a_run("b"), validation={20: 5.5, 30: 1.5})
    without = a_view("without", [1.0] * 6, every=5, run=a_run("c"))
    of = compared([long, other, without])
    assert of.common == {"loss": 30, "validation_loss": 20}
    one, two, three = (row.figures for row in of.every_row)
    assert (one["loss"], one["loss_at_common"]) == (1, 4)
    assert (two["loss"], two["loss_at_common"]) == (3, 3)
    assert (one["validation_loss"], one["validation_iteration"]) == (2, 40)
    assert one["validation_loss_at_common"] == 6
    assert (two["validation_loss_at_common"], two["validation_loss"]) == (5.5, 1.5)
    assert not [name for name in three if name.startswith("validation")]


def test_runs_without_an_iteration_in_common_are_not_compared_at_one() -> None:
    of = compared([a_view("a", [1.0]), a_view("b", [1.0], every=7, run=a_run("b"))])
    assert of.common == {}
    assert not [n for row in of.every_row for n in row.figures if n.endswith("at_common")]


def test_every_validation_set_is_a_figure_of_its_own() -> None:
    view = a_view("a", [1.0], validation={10: 2.0})
    (made,) = view.evaluations
    sets = [replace(made, of=f"validation-{n}", losses={"lm loss": n}) for n in (3, 4)]
    (row,) = compared([replace(view, evaluations=sets)]).every_row
    assert row.figures["validation-3_loss"] == 3
    assert row.figures["validation-4_loss"] == 4
    assert "validation_loss" not in row.figures


def test_speed_is_that_of_all_tokens() -> None:
    """The last 4 iterations of 4 tokens took 10, 10, 20 and 20 seconds, those before a tenth."""
    view = a_view("a", [1.0] * 40, every=1)
    times = [*np.arange(36) / 10, 13.5, 23.5, 43.5, 63.5]
    parts = [
        replace(i, time=t, sent_tokens=np.array([4, 4]))
        for i, t in zip(view.intervals, times, strict=True)
    ]
    (row,) = compared([replace(view, intervals=parts)]).every_row
    assert row.first == 37
    assert row.figures["tokens_per_second"] == pytest.approx(4 * 4 / 60)


def test_a_spread_is_of_the_seeds_that_have_the_figure() -> None:
    views = [
        a_view("s1", [1.0], run=a_run("1", seed=1), validation={10: 5.0}),
        a_view("s2", [2.0], run=a_run("2", seed=2)),
        a_view("s3", [6.0], run=a_run("3", seed=3), validation={10: 6.0}),
    ]
    (rows,) = compared(views).rows
    loss = spread(rows, "loss")
    assert (loss.mean, loss.low, loss.high, loss.count) == (3, 1, 6, 3)
    made = spread(rows, "validation_loss")
    assert (made.mean, made.low, made.high, made.count) == (5.5, 5, 6, 2)
    assert spread(rows, "nothing").count == 0


def test_json_has_all_figures_of_every_run_and_no_number_that_is_none() -> None:
    views = [
        a_view("s-1", [3.0], run=a_run("1", seed=1, train_iters=20), validation={10: 5.0}),
        a_view("s-2", [float("nan")], run=a_run("2", seed=2, train_iters=20)),
        a_view("t", [4.0], run=a_run("3", lr=7)),
    ]
    found = json.loads(json.dumps(as_json(compared(views)), allow_nan=False))
    assert [one["name"] for one in found["systems"]] == ["s", "t"]
    assert found["window"] == 10
    assert found["common"] == {"loss": 10, "validation_loss": 10}
    system = found["systems"][0]
    assert system["seeds"] == 2
    one, two = system["runs"]
    assert (one["name"], one["run"], one["seed"]) == ("s-1", "1", 1)
    assert (one["iterations"], one["train_iterations"]) == ([1, 10], 20)
    assert one["settings"] == {"lr": 0.001, "seed": 1, "train-iters": 20}
    assert two["settings"] == {"lr": 0.001, "seed": 2, "train-iters": 20}
    assert found["systems"][1]["runs"][0]["settings"] == {
        "lr": 7,
        "seed": None,
        "train-iters": None,
    }
    assert (one["figures"]["loss"], two["figures"]["loss"]) == (3, None)
    assert one["figures"].keys() == two["figures"].keys() == system["mean"].keys()
    assert [system[which]["loss"] for which in ("mean", "low", "high")] == [3, 3, 3]
    assert one["figures"]["max_vio"] == numbers(views[0].last)["max_vio"]
