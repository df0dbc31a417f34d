"""The share of a step is the sum of what happens in it and its part of a report."""

from collections.abc import Callable

import pytest

from grove_megatron.benchmarks import metrics_cost
from grove_megatron.benchmarks.harness import Samples
from grove_megatron.benchmarks.metrics_cost import MetricsCost, measure_metrics, timed
from grove_megatron.training.metrics import RoutingTracker

COST = MetricsCost(Samples((0.001, 0.002, 0.004)), Samples((0.1, 0.2, 0.3)), interval=100)
STEP = Samples((0.5, 1.0, 1.5))


def test_the_share_is_of_the_medians() -> None:
    assert COST.share(STEP) == pytest.approx(0.002 + 0.2 / 100)


def test_values_and_note_have_their_units() -> None:
    values = {value.quantity: value for value in COST.values(STEP, "grouped")}
    assert (values["metrics counting"].p50, values["metrics counting"].unit) == (2.0, "ms")
    assert (values["metrics reporting"].p50, values["metrics reporting"].unit) == (200.0, "ms")
    assert (values["metrics_share"].p50, values["metrics_share"].unit) == (0.004, "of a step")
    assert {value.variant for value in values.values()} == {"grove"}
    assert COST.note(STEP) == (
        "Counting routing takes 2.00 ms a step and a report 200.00 ms: at "
        "--grove-metrics-interval 100 0.40% of a step of grove."
    )


def test_only_the_calls_inside_are_timed() -> None:
    class Owner:
        def add(self, number: int) -> int:
            return number + 1

    def clock(run: object) -> float:
        run()  # type: ignore[operator]
        return 3.0

    owner = Owner()
    with timed(Owner, "add", clock) as seconds:
        assert [owner.add(1), owner.add(2)] == [2, 3]
    assert seconds == [3.0, 3.0]
    owner.add(3)
    assert seconds == [3.0, 3.0]


def test_every_step_is_reported_by_the_interval_of_the_tracker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Tracker(RoutingTracker):
        reported: list[int]

        def __init__(self) -> None:
            self.interval, self.reported = 3, []

        def report(self, loss_scale: float, iteration: int, *_: object, **named: object) -> str:
            return self.report_routing(iteration) if iteration % self.interval == 0 else ""

        def report_routing(self, iteration: int, *_: object) -> str:
            self.reported.append(iteration)
            return ""

    def clock(run: Callable[[], object]) -> float:
        run()
        return 0.5

    tracker = Tracker()
    monkeypatch.setattr(metrics_cost, "get_moe_metrics_tracker", lambda: tracker)
    monkeypatch.setattr(metrics_cost.ranks, "together", lambda: None)
    monkeypatch.setattr(metrics_cost.ranks, "slowest", lambda seconds: seconds)
    cost = measure_metrics(lambda: None, rounds=2, clock=clock)
    assert tracker.reported == [3, 6]
    assert cost == MetricsCost(Samples((0, 0)), Samples((0.5, 0.5)), interval=3)
