"""Real megatron.training under the CPU runtime: ten iterations at every layout."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.flags import MODEL
from tests.ranks import Job, Ranks

Train = Callable[..., list[dict[str, Any]]]

EP2 = ["--expert-model-parallel-size", "2"]
EP4 = ["--expert-model-parallel-size", "4"]
PP2 = ["--pipeline-model-parallel-size", "2"]
TP2 = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
OVERLAP = ["--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"]
FULL = ["--recompute-granularity", "full", "--recompute-method", "uniform"]
FULL += ["--recompute-num-layers", "1"]
SELECTIVE = ["--recompute-granularity", "selective", "--recompute-modules", "moe"]
MTP = ["--mtp-num-layers", "1"]

# name: (ranks, flags, Grove layers on all pipeline stages)
LAYOUTS: dict[str, tuple[int, list[str], int]] = {
    "dp2": (2, [], 2),
    "ep2": (2, EP2, 2),
    "ep4": (4, EP4, 2),
    "pp2-ep2": (4, PP2 + EP2, 2),
    "tp2-sp-ep2": (2, [*TP2, *EP2, "--expert-tensor-parallel-size", "1"], 2),
    "tp2-sp-etp2-ep2": (4, [*TP2, *EP2, "--expert-tensor-parallel-size", "2"], 2),
    "distributed-optimizer-overlap": (2, EP2 + OVERLAP, 2),
    "bf16": (2, [*EP2, "--bf16"], 2),
    "full-recompute": (2, EP2 + FULL, 2),
    "moe-recompute": (2, EP2 + SELECTIVE, 2),
    "mtp": (2, EP2 + MTP, 3),
    "pp2-mtp": (2, PP2 + MTP, 3),
    "softmax-scoring": (2, [*EP2, "--grove-router-scoring", "softmax"], 2),
    "expert-bias": (2, [*EP2, "--moe-router-enable-expert-bias"], 2),
    "capacity": (2, [*EP2, "--moe-expert-capacity-factor", "1.0"], 2),
    "one-dense-layer": (2, [*EP2, "--moe-layer-freq", "[0,1]"], 1),
    "megatrons-experts": (2, [*EP2, "--grove-kernel", "megatron"], 2),
    "deterministic": (2, [*EP2, "--deterministic-mode"], 2),
}


# In every test run, the others in the whole matrix. test_switches.py compares what each computes.
SHORT = {"ep2", "ep4", "pp2-ep2", "tp2-sp-ep2", "megatrons-experts"}
EVERY_LAYOUT = pytest.mark.parametrize(
    "layout",
    [pytest.param(name, marks=[] if name in SHORT else [pytest.mark.long]) for name in LAYOUTS],
)


@pytest.fixture(scope="module")
def train(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train once per set of flags; returns what every rank recorded."""
    done: dict[tuple[int, tuple[str, ...]], list[dict[str, Any]]] = {}

    def run(world_size: int, flags: list[str]) -> list[dict[str, Any]]:
        key = (world_size, tuple(flags))
        if key not in done:
            folder = tmp_path_factory.mktemp("run")
            argv = [*MODEL, *flags]
            target = "tests.integration.recorded_run:train"
            job = ranks.run(world_size, target, str(folder), argv, folder=folder)
            done[key] = job.check().results()
        return done[key]

    return run


def losses(results: list[dict[str, Any]]) -> list[float]:
    """The loss of every iteration; the last pipeline stage knows it."""
    return [step["lm loss"] for step in results[-1]["losses"]]


@EVERY_LAYOUT
def test_ten_iterations_train(layout: str, train: Train) -> None:
    world_size, flags, _ = LAYOUTS[layout]
    seen = losses(train(world_size, flags))
    assert len(seen) == 10
    assert all(math.isfinite(x) for x in seen)
    assert seen[-1] < 0.75 * seen[0]


@EVERY_LAYOUT
def test_the_model_has_the_grove_layers_the_flags_ask_for(layout: str, train: Train) -> None:
    world_size, flags, expected = LAYOUTS[layout]
    stages = 2 if "--pipeline-model-parallel-size" in flags else 1
    results = train(world_size, flags)
    # Pipeline stages are the slowest dimension of Megatron's rank order.
    first_of_stage = [results[stage * world_size // stages] for stage in range(stages)]
    assert sum(len(r["layers"]) for r in first_of_stage) == expected


@EVERY_LAYOUT
def test_rows_sent_are_the_distinct_token_and_rank_pairs(layout: str, train: Train) -> None:
    world_size, flags, _ = LAYOUTS[layout]
    for result in train(world_size, flags):
        for layer in result["layers"]:
            assert layer["rows"] == layer["sent"] == layer["distinct"] > 0
            if layout == "capacity":
                assert layer["routed_pairs"] < 2 * layer["tokens"]
            else:
                assert layer["routed_pairs"] == 2 * layer["tokens"]


@pytest.mark.long
@pytest.mark.parametrize("layout", ["full-recompute", "moe-recompute"])
def test_recompute_changes_nothing(layout: str, train: Train) -> None:
    base = train(2, EP2)
    recomputed = train(*LAYOUTS[layout][:2])
    for a, b in zip(base, recomputed, strict=True):
        assert a["losses"] == b["losses"]
        assert a["grad_norms"] == b["grad_norms"]
        assert a["parameters"] == b["parameters"]


@pytest.mark.long
def test_the_distributed_optimizer_changes_nothing_but_rounding(train: Train) -> None:
    base = losses(train(2, EP2))
    sharded = losses(train(*LAYOUTS["distributed-optimizer-overlap"][:2]))
    assert sharded == pytest.approx(base, rel=1e-5)


@pytest.mark.long
def test_two_deterministic_runs_are_the_same_bits_and_those_of_any_run_here(train: Train) -> None:
    first = train(*LAYOUTS["deterministic"][:2])
    again = train(2, [*LAYOUTS["deterministic"][1], "--seed", "1234"])  # the default
    for results in (again, train(2, EP2)):
        for a, b in zip(first, results, strict=True):
            assert a["losses"] == b["losses"]
            assert a["grad_norms"] == b["grad_norms"]
            assert a["parameters"] == b["parameters"]


def test_grouped_experts_change_nothing_but_rounding(train: Train) -> None:
    grouped, megatrons = train(2, EP2), train(*LAYOUTS["megatrons-experts"][:2])
    assert losses(grouped) == pytest.approx(losses(megatrons), rel=1e-5)
    for a, b in zip(grouped, megatrons, strict=True):
        assert a["grad_norms"] == pytest.approx(b["grad_norms"], rel=1e-5)
        assert a["parameters"].keys() == b["parameters"].keys()


def test_hierarchical_dispatch_changes_nothing_but_rounding(
    train: Train, ranks: Ranks, tmp_path: Path
) -> None:
    flat = train(*LAYOUTS["ep4"][:2])
    argv = [*MODEL, *EP4, "--grove-hierarchical-dispatch"]
    target = "tests.integration.recorded_run:train_on_two_nodes"
    job = ranks.run(4, target, str(tmp_path), argv, folder=tmp_path)
    in_two_hops = job.check().results()
    assert losses(in_two_hops) == pytest.approx(losses(flat), rel=1e-5)
    assert in_two_hops[0]["grad_norms"] == pytest.approx(flat[0]["grad_norms"], rel=1e-5)
    for a, b in zip(flat[0]["layers"], in_two_hops[0]["layers"], strict=True):
        assert a["node_rows"] == 0 < b["node_rows"] < a["rows"]
        assert b["node_rows"] == b["sent"]


def test_every_rank_reports_the_same_gradient_norm(train: Train) -> None:
    for layout in ("ep4", "pp2-ep2"):
        results = train(*LAYOUTS[layout][:2])
        assert all(r["grad_norms"] == results[0]["grad_norms"] for r in results)


def test_async_save_is_refused_by_name(ranks: Ranks, tmp_path: Path) -> None:
    argv = [
        *MODEL,
        "--save",
        str(tmp_path / "ckpt"),
        "--async-save",
        "--use-persistent-ckpt-worker",
    ]
    job: Job = ranks.run(
        2, "tests.integration.recorded_run:train", str(tmp_path), argv, folder=tmp_path
    )
    assert job.codes == [2, 2]
    assert "--async-save (True) on the CPU runtime" in job.log(0)
    assert not (tmp_path / "ckpt").exists()


def test_a_model_without_the_layers_it_asked_for_is_not_trained(
    ranks: Ranks, tmp_path: Path
) -> None:
    target = "tests.integration.recorded_run:train_stock_layers"
    job = ranks.run(2, target, str(tmp_path), [*MODEL, *EP2], folder=tmp_path)
    assert all(job.codes)
    expected = "Grove layers in the model (0) differ from those the flags ask for (2)"
    # Every rank finds it; the one that is first to say so speaks for all.
    assert any(f"failed: ValueError: {expected}" in job.log(rank) for rank in range(2))
    assert " iteration " not in job.log(1)
