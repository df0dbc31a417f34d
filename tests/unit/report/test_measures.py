"""Numbers of an interval, beside what one counts by hand."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from grove_megatron.planner.traffic import expected_distinct
from grove_megatron.report.expected import distribution
from grove_megatron.report.measures import (
    MEANINGS,
    TOTALS,
    Idle,
    active_parameters,
    longest_idle,
    mean,
    per_layer,
    sent_bytes,
    totals,
)
from tests.unit.report.intervals import RUN, interval


def test_measures_of_a_layer_are_those_counted_by_hand() -> None:
    # Layer 1: tokens {0,1} {0,1} {0,7} {2,4}; groups of 2, ranks of 4 experts; 10 iterations.
    found = {name: values[0] for name, values in per_layer(interval()).items()}
    assert found == pytest.approx(
        {
            "load_mean": 8 / 8 / 10,
            "load_min": 0.0,
            "load_max": 3 / 10,
            "max_vio": 3 / 1 - 1,
            "dead_experts": 3,  # 3, 5, 6
            "group_max_vio": 5 / 2 - 1,  # pairs 5, 1, 1, 1
            "adjugate_max_vio": 3 / (6 / 4) - 1,  # tokens 3, 1, 1, 1
            "groups_per_token": 6 / 4,
            "pairs_per_token": 2,
            "rows_per_token": 6 / 4,  # 4 to rank 0, 2 to rank 1
            "rank_pairs_imbalance": 6 / 4,
            "rank_rows_imbalance": 4 / 3,
        }
    )


def test_a_token_without_experts_is_a_token() -> None:
    # Layer 2: {3,6} {3,7} {} {3}.
    layers = per_layer(interval())
    assert layers["pairs_per_token"][1] == 5 / 4
    assert layers["groups_per_token"][1] == layers["rows_per_token"][1] == 5 / 4


def test_totals() -> None:
    counted = interval(rerun_tokens=np.array([0, 4]))
    # 2 rows of layer 1 cross 4 times, 2 of layer 2 also forth and back once more.
    assert sent_bytes(counted) == (2 * 4 + 2 * 6) * 64
    found = totals(counted)
    assert found["sent_bytes_per_rank"] == (2 * 4 + 2 * 6) * 64 / 4 / 10
    assert found["dead_experts_total"] == 3 + 5
    assert found["worst_max_vio"] == max(per_layer(counted)["max_vio"])
    pairs, groups = (2 + 5 / 4) / 2, (6 / 4 + 5 / 4) / 2
    assert active_parameters(counted) == 1000 + 800 * pairs / 8 + 400 * groups / 4


def test_measures_that_do_not_apply_are_absent() -> None:
    found = per_layer(interval())
    assert {"dropped_share", "bias_rms", "node_rows_per_token"}.isdisjoint(found)
    bias = np.array([[0.0] * 7 + [0.4], [-0.1] * 8], np.float32)
    local = np.array([[0, 0, 0, 0], [1, 0, 0, 1]])
    run = replace(RUN, drops=True, local={"constant": 2, "copy": 1, "zero": 1})
    other = interval(run=run, bias=bias, node_rows=np.array([4, 5]), local=local)
    found = per_layer(other)
    assert found["dropped_share"].tolist() == [0, 1 - 7 / 8]
    assert found["skipped_share"].tolist() == [0, 2 / 7]
    assert found["constant_per_token"].tolist() == found["zero_per_token"].tolist() == [0, 1 / 4]
    assert found["copy_per_token"].tolist() == [0, 0]
    assert found["bias_rms"] == pytest.approx([0.4 / math.sqrt(8), 0.1])
    assert found["bias_max"] == pytest.approx([0.4, -0.1])
    assert found["node_rows_per_token"].tolist() == [1, 5 / 4]
    assert found.keys() == MEANINGS.keys()
    assert totals(other).keys() | {"longest_idle"} == TOTALS.keys()


@pytest.mark.filterwarnings("error")
def test_a_layer_without_tokens_has_no_numbers_and_spoils_none() -> None:
    half = interval(([[0, 1]], []))
    found = per_layer(half)
    assert all(math.isnan(values[1]) for values in found.values())
    assert mean(found["max_vio"]) == 3
    assert all(math.isfinite(value) for value in totals(half).values())
    none = interval(([], []))
    assert math.isnan(mean(per_layer(none)["max_vio"]))
    assert math.isnan(totals(none)["active_parameters"])
    assert totals(none)["sent_bytes_per_rank"] == 0


def test_an_idle_expert_is_one_without_tokens_for_whole_intervals() -> None:
    idle = Idle()
    first = idle.see(interval())
    assert first[0].tolist() == [0, 0, 0, 10, 0, 10, 10, 0]
    assert idle.see(interval(iterations=5))[0, 3] == 15
    assert idle.see(interval(([[3, 4]], [])))[0, 3] == 0
    # A layer that saw nothing at all says nothing of its experts.
    assert idle.see(interval(([[0, 1]], [])))[1].tolist() == [15, 15, 15, 0, 15, 15, 0, 0]


def test_the_longest_idle_expert_is_that_at_the_end() -> None:
    first = interval()
    assert longest_idle([first, interval(iterations=5)]) == 15
    busy = [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert longest_idle([first, interval((busy, busy))]) == 0


@pytest.mark.parametrize(("experts", "parts", "topk"), [(6, 3, 2), (8, 4, 3), (8, 2, 5), (6, 6, 4)])
def test_expectations_are_those_of_all_choices(experts: int, parts: int, topk: int) -> None:
    met = [
        len({e * parts // experts for e in chosen}) for chosen in combinations(range(experts), topk)
    ]
    chances = [met.count(n) / len(met) for n in range(min(topk, parts) + 1)]
    assert distribution(experts, topk, parts) == pytest.approx(chances, rel=1e-12, abs=1e-15)
    assert expected_distinct(experts, topk, parts) == pytest.approx(sum(met) / len(met), rel=1e-12)


def test_expectations_of_the_released_model() -> None:
    assert expected_distinct(128, 8, 64) == pytest.approx(7.7795, abs=5e-5)
    assert [round(x, 4) for x in distribution(128, 8, 64)[-3:]] == [0.0126, 0.1947, 0.7925]
