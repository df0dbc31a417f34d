"""What of an interval goes into the log line, and what to TensorBoard and W&B."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grove_megatron.report.measures import mean, per_layer
from grove_megatron.training.metrics_run import record_folder
from grove_megatron.training.metrics_values import log_line, scalars, write
from tests.unit.report.intervals import RUN, interval

IDLE = np.array([[0, 30], [10, 0]])


def test_the_log_line_has_megatrons_form() -> None:
    # MaxVio 2 and 2*8/5*... per layer as in test_measures; means over the two layers.
    assert log_line(interval()) == (
        " load max/mean: 3.90 | dead experts: 8 | groups per token: 1.38 | rows per token: 1.38 |"
        " rank max/mean: 1.35 |"
    )


def test_the_log_line_says_what_a_capacity_drops() -> None:
    one = interval(run=replace(RUN, drops=True))
    shown = float(mean(per_layer(one)["dropped_share"]))
    assert 0 < shown < 1
    assert f" dropped: {shown:.1%} | rank max/mean: " in log_line(one)
    assert "dropped" not in log_line(interval())


def test_scalars_are_means_over_layers_and_totals() -> None:
    values = scalars(interval(), IDLE, every_layer=False)
    assert values["grove/groups_per_token"] == (6 / 4 + 5 / 4) / 2
    assert values["grove/longest_idle"] == 30
    assert values["grove/dead_experts_total"] == 8
    met = [values[f"grove/tokens_that_meet_groups/{n}"] for n in range(3)]
    assert met == [1 / 8, 3 / 8, 4 / 8]
    assert not [tag for tag in values if "layer" in tag]
    assert "grove/bias_rms" not in values


def test_every_layer_has_its_own_where_megatron_is_told_so() -> None:
    values = scalars(interval(), IDLE, every_layer=True)
    assert values["grove/groups_per_token/layer_1"] == 6 / 4
    assert values["grove/groups_per_token/layer_mtp_1"] == 5 / 4


@pytest.mark.filterwarnings("error")
def test_what_is_not_a_number_is_left_out() -> None:
    values = scalars(interval(([[0, 1]], [])), IDLE, every_layer=True)
    assert "grove/max_vio/layer_1" in values
    assert "grove/max_vio/layer_mtp_1" not in values
    nothing = scalars(interval(([], [])), IDLE, every_layer=True)
    assert all(np.isfinite(value) for value in nothing.values())
    assert "grove/max_vio" not in nothing
    assert "nan" in log_line(interval(([], [])))


def test_both_writers_get_every_value() -> None:
    class TensorBoard:
        def __init__(self) -> None:
            self.seen: dict[tuple[str, int], float] = {}

        def add_scalar(self, tag: str, value: float, iteration: int) -> None:
            self.seen[tag, iteration] = value

    class Wandb:
        calls: list[tuple[dict[str, float], int]]

        def __init__(self) -> None:
            self.calls = []

        def log(self, values: dict[str, float], iteration: int) -> None:
            self.calls.append((values, iteration))

    values = {"a": 1.0, "b": 2.0}
    board, wandb = TensorBoard(), Wandb()
    write(values, 7, board, wandb)
    assert board.seen == {("a", 7): 1.0, ("b", 7): 2.0}
    assert wandb.calls == [(values, 7)]
    write(values, 8, None, None)


@pytest.mark.parametrize(
    ("given", "save", "expected"),
    [
        (None, None, None),
        (None, "ckpt", Path("ckpt/grove_metrics")),
        ("there", "ckpt", Path("there")),
        ("there", None, Path("there")),
        (None, "msc://bucket/ckpt", None),
    ],
)
def test_the_record_goes_into_save_unless_told_otherwise(
    given: str | None, save: str | None, expected: Path | None
) -> None:
    assert (
        record_folder(Namespace(grove_metrics_dir=given, save=save, enable_msc=False)) == expected
    )


def test_the_example_is_the_one_of_the_measures() -> None:
    assert RUN.layers == ("1", "mtp 1")
