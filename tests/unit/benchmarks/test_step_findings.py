"""The ratios that ``grove bench step`` prints are those of the medians."""

import pytest

from grove_megatron.benchmarks.harness import Samples
from grove_megatron.benchmarks.shape import Settings, Shape
from grove_megatron.benchmarks.step_findings import findings

SETTINGS = Settings(
    benchmark="step",
    preset="small",
    shape=Shape(tokens=3, hidden=5, experts=4, groups=2, topk=2),
    ranks=4,
    rounds=1,
    warmup=0,
    kernels=("grouped",),
)
TIMES = {"plain": 4.0, "naive": 8.0, "grove-dispatch": 3.0, "grove": 6.0}
SAMPLES = {name: Samples((time,)) for name, time in TIMES.items()}


def test_times_beside_plain_and_beside_the_operations() -> None:
    found = findings(SETTINGS, SAMPLES, rows=1.5, flops=1.25, cost=None)
    assert found.summary == {
        "ratio_vs_plain": 1.5,
        "ratio_vs_naive": 0.75,
        "flop_ratio": 1.25,
        "grove_dispatch_vs_plain": 0.75,
        "rows_per_token": 1.5,
        "metrics_share": None,
        "watch_share": None,
    }
    (table,) = found.tables
    assert [line[2:] for line in table.lines] == [
        ("1.000", "1.500"),
        ("2.000", "0.750"),
        ("0.750", "2.000"),
        ("1.500", "1.000"),
    ]
    assert list(found.notes) == [
        "A step of grove beside plain: 1.500 of the time, 1.250 of the operations.",
        "The plain model on grove's dispatch (--grove-dispatch): 0.750 of the time.",
        "grove sent 1.50 rows a token and layer; Megatron's dispatch 2.",
    ]
    assert {v.quantity: v.p50 for v in found.values}["flop_ratio"] == 1.25


def test_what_was_left_out_or_is_not_known_is_not_said() -> None:
    found = findings(SETTINGS, {"grove": SAMPLES["grove"]}, rows=1.5, flops=None, cost=None)
    assert found.summary["grove_dispatch_vs_plain"] is None
    assert found.summary["flop_ratio"] is None
    assert "flop_ratio" not in {v.quantity for v in found.values}
    assert list(found.notes) == ["grove sent 1.50 rows a token and layer; Megatron's dispatch 2."]
    found = findings(
        SETTINGS, {n: SAMPLES[n] for n in ("plain", "grove")}, rows=1.5, flops=None, cost=None
    )
    assert next(iter(found.notes)) == "A step of grove beside plain: 1.500 of the time."


def test_the_watch_of_logits_is_a_share_of_a_step() -> None:
    watch = Samples((0.3, 0.6, 0.9))
    found = findings(SETTINGS, SAMPLES, rows=1.5, flops=None, cost=None, watch=watch)
    assert found.summary["watch_share"] == pytest.approx(0.1)
    values = {v.quantity: (v.p50, v.unit) for v in found.values}
    assert values["watch of logits"] == (600.0, "ms")
    assert values["watch_share"] == (0.1, "of a step")
    assert found.notes[-1] == (
        "Looking for logits that are not finite takes 600.00 ms, 10.00% of a step of grove."
    )
