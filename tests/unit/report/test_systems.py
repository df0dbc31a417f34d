"""Which runs are seeds of one system, and what the systems are called."""

from collections.abc import Sequence
from typing import Any

import pytest

from grove_megatron.report.record import Run
from grove_megatron.report.systems import differing, run_names, systems
from tests.unit.report.jobs import a_run, a_view


def found(*jobs: tuple[str, Run]) -> list[tuple[str, list[str]]]:
    views = [a_view(name, run=run) for name, run in jobs]
    return [(one.name, [view.name for view in one.views]) for one in systems(views)]


@pytest.mark.parametrize(
    ("other", "one_system"),
    [
        ({"seed": 2}, True),
        ({"wandb_exp_name": "x"}, True),
        ({"grove_metrics_dir": "/x"}, True),
        ({"grove_metrics_interval": 7}, True),
        ({"grove_metrics_coactivation": True}, True),
        ({"grove_failure_watch": "off"}, True),
        ({"grove_print_arguments": "all"}, True),
        ({"world_size": 64}, True),
        ({"data_parallel_size": 16}, True),
        ({"lr": 0.5}, False),
        ({"bf16": True}, False),
        ({"sizes": {"ranks": 4}}, False),
        ({"sizes": {"world_size": 64}}, True),
        ({"sizes": {"topk": 3}}, False),
        ({"sizes": {"parameters": (1001, 800, 400)}}, False),
    ],
)
def test_seeds_of_a_system_differ_in_what_trains_no_other_model(
    other: dict[str, Any], one_system: bool
) -> None:
    names = [run for _, run in found(("a", a_run("a")), ("b", a_run("b", **other)))]
    assert names == ([["a", "b"]] if one_system else [["a"], ["b"]])


def test_a_setting_that_one_run_lacks_makes_another_system() -> None:
    assert len(found(("a", a_run(seed=1)), ("b", a_run(seed=1, moe_z_loss_coeff=0.1)))) == 2
    # Shown alike, so not told apart.
    assert len(found(("a", a_run(seed=1)), ("a", a_run(seed=1, bf16="(unset)")))) == 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["top8-seed1", "top8-seed2"], "top8"),
        (["top8-1", "top8-2"], "top8"),
        (["top8_s10", "top8_s11"], "top8"),
        (["aux_loss.Seed=1", "aux_loss.Seed=2"], "aux_loss"),
        (["experts1", "experts2"], "experts"),
        (["bus-a", "bus-b"], "bus"),
        (["same-s", "same-s"], "same-s"),
        (["one"], "one"),
        (["alpha", "beta"], "all runs"),
        (["s1", "s2"], "s"),
        (["seed1", "seed2"], "all runs"),
    ],
)
def test_a_system_is_called_what_its_jobs_have_in_common(
    names: Sequence[str], expected: str
) -> None:
    (one,) = found(*((name, a_run(name, seed=n)) for n, name in enumerate(names)))
    assert one == (expected, names)


def test_systems_stand_in_the_order_of_their_first_runs() -> None:
    jobs = [("b-1", a_run(lr=1)), ("a-1", a_run(lr=2)), ("b-2", a_run(lr=1, seed=2))]
    assert found(*jobs) == [("b", ["b-1", "b-2"]), ("a-1", ["a-1"])]


def test_jobs_of_one_name_are_told_apart_by_the_fewest_flags() -> None:
    """Neither of the first two flags would do alone, and the third does."""
    jobs = [
        ("seed1", a_run(lr=1, moe_z_loss_coeff=1, grove_noise="a", seed=1)),
        ("seed1", a_run(lr=1, moe_z_loss_coeff=2, grove_noise="b", seed=2)),
        ("seed1", a_run(lr=2, moe_z_loss_coeff=2, grove_noise="c", seed=3)),
    ]
    assert [name for name, _ in found(*jobs)] == ["noise a", "noise b", "noise c"]
    jobs = [("x", a_run(lr=n // 2, moe_z_loss_coeff=n % 2, seed=n)) for n in range(4)]
    assert [name for name, _ in found(*jobs)] == [
        *("lr 0, z-loss-coeff 0", "lr 0, z-loss-coeff 1"),
        *("lr 1, z-loss-coeff 0", "lr 1, z-loss-coeff 1"),
    ]


def test_a_router_is_called_what_it_is() -> None:
    """Not only by the selector that it has in common with the plain one."""
    jobs = [
        ("x", a_run(grove_router_selector="hash", grove_router_gate="linear")),
        ("x", a_run(grove_router_selector="topk", grove_router_gate="attention")),
        ("x", a_run(grove_router_selector="base", grove_router_gate="linear")),
    ]
    assert [name for name, _ in found(*jobs)] == [
        "router-selector hash, router-gate linear",
        "router-selector topk, router-gate attention",
        "router-selector base, router-gate linear",
    ]


def test_the_seed_is_no_name_of_a_system() -> None:
    jobs = [("x", a_run(seed=n, bf16=True) if n else a_run(seed=n)) for n in range(2)]
    assert [name for name, _ in found(*jobs)] == ["bf16 (unset)", "bf16 True"]


def test_what_differs_is_listed_for_every_run_with_the_sizes() -> None:
    runs = [a_run(seed=1), a_run(seed=2, sizes={"experts": 16, "groups": 0})]
    assert differing([a_view("x", run=run) for run in runs]) == {
        "seed": ["1", "2"],
        "num-experts": ["8", "16"],
        "grove-num-groups": ["4", "(unset)"],
    }


def test_runs_of_one_name_are_told_apart_by_their_own() -> None:
    views = [a_view("x", run=a_run("1")), a_view("y"), a_view("x", run=a_run("2"))]
    assert run_names(views) == ["x (1)", "y", "x (2)"]
