"""Runs that must not differ: other layouts, plain Megatron, an unmodified script, a resumed run."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.integration.flags import MODEL, PLAIN_MODEL
from tests.ranks import Ranks

RUN = "tests.integration.recorded_run"
SCRIPT = str(Path(__file__).with_name("stock_entry_script.py"))
EP2 = ["--expert-model-parallel-size", "2"]
EP4 = ["--expert-model-parallel-size", "4"]
SPEC = ["--spec", "grove_megatron.layer_spec", "grove_layer_spec"]
# What the CPU runtime makes the default; a script without our flags has to be told.
CPU_FLAGS = (
    "--distributed-backend gloo --transformer-impl local --attention-backend unfused "
    "--no-gradient-accumulation-fusion --no-masked-softmax-fusion --no-bias-swiglu-fusion "
    "--no-rope-fusion --no-persist-layer-norm --no-bias-gelu-fusion --no-bias-dropout-fusion"
).split()


class Runner:
    """Runs a recorded job and returns what every rank wrote."""

    def __init__(self, ranks: Ranks, factory: pytest.TempPathFactory):
        self.ranks, self.factory = ranks, factory

    def __call__(self, world_size: int, how: str, argv: list[str]) -> list[dict[str, Any]]:
        folder = self.factory.mktemp(how)
        job = self.ranks.run(world_size, f"{RUN}:{how}", str(folder), argv, folder=folder)
        return job.check().results()


@pytest.fixture(scope="module")
def runner(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(ranks, tmp_path_factory)


def assert_identical(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    for x, y in zip(a, b, strict=True):
        assert x["losses"] == y["losses"]
        assert x["grad_norms"] == y["grad_norms"]
        assert x["parameters"] == y["parameters"]


def test_without_groups_the_run_is_megatrons_bit_for_bit(runner: Runner) -> None:
    ours = runner(2, "train", PLAIN_MODEL + EP2)
    with_spec = runner(2, "train", PLAIN_MODEL + EP2 + SPEC)
    stock = runner(2, "run_stock", [SCRIPT, *PLAIN_MODEL, *EP2, *CPU_FLAGS])
    assert len(stock[0]["losses"]) == 10
    assert_identical(ours, stock)
    assert_identical(with_spec, stock)


def test_an_unmodified_script_trains_the_launchers_model(runner: Runner) -> None:
    ours = runner(2, "train", MODEL + EP2)
    foreign = runner(2, "run_script", [SCRIPT, *MODEL, *EP2])
    assert len(foreign[0]["layers"]) == 2
    assert_identical(foreign, ours)


@pytest.mark.skipif(
    not (Path(os.environ.get("MEGATRON_LM", "")) / "pretrain_gpt.py").is_file(),
    reason="MEGATRON_LM names no folder with pretrain_gpt.py of core_v0.19.0",
)
def test_megatrons_own_script_trains_the_launchers_model(runner: Runner) -> None:
    script = str(Path(os.environ["MEGATRON_LM"]) / "pretrain_gpt.py")
    ours = runner(2, "train", MODEL + EP2)
    foreign = runner(2, "run_script", [script, *MODEL, *EP2])
    assert_identical(foreign, ours)


def test_adding_adjugates_leaves_every_other_initial_weight_as_it_was(runner: Runner) -> None:
    # At learning rate 0 the weights after training are the initial ones.
    frozen = ["--lr", "0", "--min-lr", "0", "--train-iters", "1"]
    plain = runner(2, "train", [*PLAIN_MODEL, *EP2, *frozen])
    grove = runner(2, "train", [*MODEL, *EP2, *frozen])
    for a, b in zip(plain, grove, strict=True):
        shared = {n: h for n, h in b["parameters"].items() if ".adjugate_experts." not in n}
        assert shared == a["parameters"]
        assert len(b["parameters"]) > len(shared)


def test_adjugates_start_different_on_every_rank_and_layer(runner: Runner) -> None:
    frozen = ["--lr", "0", "--min-lr", "0", "--train-iters", "1"]
    results = runner(2, "train", [*MODEL, *EP2, *frozen])
    hashes = [h for r in results for n, h in r["parameters"].items() if ".adjugate_experts." in n]
    # 2 ranks x 2 layers x 2 local groups x 2 matrices
    assert len(hashes) == len(set(hashes)) == 16


def test_weights_that_arrive_while_the_model_runs_are_the_new_ones(runner: Runner) -> None:
    # Two ranks for each expert: what one of them has updated, the other has to wait for.
    argv = [*MODEL, *EP2, "--use-distributed-optimizer"]
    overlap = ["--overlap-grad-reduce", "--overlap-param-gather"]
    before, during = runner(4, "train", argv), runner(4, "train", argv + overlap)
    expected = [step["lm loss"] for step in before[-1]["losses"]]
    assert len(set(expected)) == 10
    assert [s["lm loss"] for s in during[-1]["losses"]] == pytest.approx(expected, rel=1e-6)
    assert during[-1]["grad_norms"] == pytest.approx(before[-1]["grad_norms"], rel=1e-6)


@pytest.fixture(scope="module")
def start(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that every layout can start from."""
    folder = tmp_path_factory.mktemp("start")
    save = ["--save", str(folder), "--save-interval", "1", "--no-save-optim", "--no-save-rng"]
    runner(4, "train", [*MODEL, "--train-iters", "1", *save])
    return folder


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(EP2, id="ep2"),
        pytest.param(EP4, id="ep4", marks=pytest.mark.long),
        pytest.param(
            [*EP2, "--pipeline-model-parallel-size", "2"], id="pp2-ep2", marks=pytest.mark.long
        ),
        pytest.param(
            [*EP2, "--tensor-model-parallel-size", "2", "--sequence-parallel"],
            id="tp2-sp-ep2",
            marks=pytest.mark.long,
        ),
    ],
)
def test_every_layout_trains_as_expert_parallel_size_1(
    layout: list[str], runner: Runner, start: Path
) -> None:
    load = ["--load", str(start), "--finetune", "--no-load-optim", "--no-load-rng"]
    base = runner(4, "train", MODEL + load)
    split = runner(4, "train", MODEL + load + layout)
    expected = [step["lm loss"] for step in base[-1]["losses"]]
    assert len(set(expected)) == 10
    assert [s["lm loss"] for s in split[-1]["losses"]] == pytest.approx(expected, rel=1e-5)
    assert split[-1]["grad_norms"] == pytest.approx(base[-1]["grad_norms"], rel=1e-5)


@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [
        pytest.param("fp32", "plain", marks=pytest.mark.long),
        ("bf16", "distributed"),
        pytest.param("fp32", "distributed", marks=pytest.mark.long),
        pytest.param("bf16", "plain", marks=pytest.mark.long),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    optimizer: str, precision: str, runner: Runner, tmp_path: Path
) -> None:
    flags = [*MODEL, *EP2, "--lr-decay-iters", "10"]
    flags += ["--use-distributed-optimizer"] if optimizer == "distributed" else []
    flags += ["--bf16"] if precision == "bf16" else []
    whole = runner(2, "train", flags)
    save = ["--save", str(tmp_path), "--save-interval", "5"]
    runner(2, "train", [*flags, *save, "--exit-interval", "5"])
    resumed = runner(2, "train", [*flags, "--load", str(tmp_path)])
    for a, b in zip(whole, resumed, strict=True):
        assert b["losses"] == a["losses"][5:]
        assert b["grad_norms"] == a["grad_norms"][5:]
        assert b["parameters"] == a["parameters"]


RESHARDABLE = ["--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable"]


@pytest.mark.parametrize(
    ("first", "second", "optimizer"),
    [
        pytest.param("megatron", "grouped", [], id="to-grouped", marks=pytest.mark.long),
        pytest.param(
            "grouped",
            "megatron",
            RESHARDABLE,
            id="from-grouped-distributed",
            marks=pytest.mark.long,
        ),
        pytest.param("grouped", "megatron", [], id="from-grouped", marks=pytest.mark.long),
        pytest.param(
            "megatron", "grouped", RESHARDABLE, id="to-grouped-distributed", marks=pytest.mark.long
        ),
    ],
)
def test_training_goes_on_with_the_other_expert_modules(
    first: str, second: str, optimizer: list[str], runner: Runner, tmp_path: Path
) -> None:
    flags = [*MODEL, *EP2, *optimizer, "--lr-decay-iters", "10", "--grove-kernel"]
    whole = runner(2, "train", [*flags, first])
    save = ["--save", str(tmp_path), "--save-interval", "5", "--exit-interval", "5"]
    runner(2, "train", [*flags, first, *save])
    resumed = runner(2, "train", [*flags, second, "--load", str(tmp_path)])
    for a, b in zip(whole, resumed, strict=True):
        expected = [step["lm loss"] for step in a["losses"][5:]]
        assert [step["lm loss"] for step in b["losses"]] == pytest.approx(expected, rel=1e-6)
        assert b["grad_norms"] == pytest.approx(a["grad_norms"][5:], rel=1e-6)


def test_optimizer_states_in_memory_order_do_not_go_to_other_expert_modules(
    runner: Runner, ranks: Ranks, tmp_path: Path
) -> None:
    flags = [*MODEL, *EP2, "--use-distributed-optimizer", "--grove-kernel"]
    save = ["--save", str(tmp_path), "--save-interval", "5", "--exit-interval", "5"]
    runner(2, "train", [*flags, "megatron", *save])
    argv = [*flags, "grouped", "--load", str(tmp_path)]
    job = ranks.run(2, f"{RUN}:train", str(tmp_path), argv, folder=tmp_path)
    assert job.codes == [2, 2]
    assert "--grove-kernel (grouped) makes expert modules (GroupedExperts)" in job.log()


def test_grove_flags_come_back_from_a_checkpoint(runner: Runner, start: Path) -> None:
    load = ["--load", str(start), "--finetune", "--no-load-optim", "--no-load-rng"]
    restored = ["--use-checkpoint-args", "--train-iters", "1"]
    for how, script in (("train", []), ("run_script", [SCRIPT])):
        results = runner(4, how, [*script, *PLAIN_MODEL, *load, *restored])
        assert len(results[0]["layers"]) == 2


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            PLAIN_MODEL,
            "--grove-num-groups (None) differs from --grove-num-groups of the",
        ),
        (
            [*MODEL, "--grove-adjugate-scale", "0.25"],
            "--grove-adjugate-scale (0.25) differs from --grove-adjugate-scale of the checkpoint",
        ),
    ],
    ids=["without-groups", "another-scale"],
)
def test_a_checkpoint_does_not_become_another_model_silently(
    flags: list[str], line: str, ranks: Ranks, start: Path, tmp_path: Path
) -> None:
    for how, script in (("train", []), ("run_script", [SCRIPT])):
        folder = tmp_path / how
        argv = [*script, *flags, "--load", str(start)]
        job = ranks.run(4, f"{RUN}:{how}", str(folder), argv, folder=folder)
        assert job.codes == [2, 2, 2, 2]
        assert line in job.log(0)


def test_a_grove_flag_that_contradicts_the_checkpoint_is_refused(
    ranks: Ranks, start: Path, tmp_path: Path
) -> None:
    flags = ["--use-checkpoint-args", "--load", str(start), "--grove-num-groups", "2"]
    for how, script in (("train", []), ("run_script", [SCRIPT])):
        folder = tmp_path / how
        argv = [*script, *PLAIN_MODEL, *flags]
        job = ranks.run(4, f"{RUN}:{how}", str(folder), argv, folder=folder)
        assert job.codes == [2, 2, 2, 2]
        expected = "--grove-num-groups (2) differs from --grove-num-groups of the checkpoint (4)"
        assert expected in job.log(0)
