"""MoE++, with groups and without: every layout, and every way to compute it again, is one model."""

import re
from pathlib import Path

import pytest

from grove_megatron.report.measures import per_layer
from grove_megatron.report.record import read_record
from tests.integration.flags import GROVE, PLAIN_MODEL
from tests.integration.switch_runs import THREE, Runner, assert_gradients, gradients
from tests.ranks import Ranks

LONG = pytest.mark.long
MOEPP = (
    "--num-layers 4 --train-iters 10 --lr-decay-iters 10 --clip-grad 1e9 --lr 1e-3 "
    "--grove-constant-experts 2 --grove-copy-experts 1 --grove-zero-experts 1 "
    "--grove-zero-expert-weight others --grove-topk-scaled-input --grove-gating-residual "
    "--grove-router-gate two_layer --grove-heterogeneous-loss-coeff 0.1"
).split()
MODELS = {
    "groups": [*PLAIN_MODEL, *GROVE, *MOEPP],
    "plain": [*PLAIN_MODEL, "--grove-dispatch", *MOEPP],
}
EP2 = "--expert-model-parallel-size 2"
LAYOUTS = {
    "ep2": EP2,
    "ep4": "--expert-model-parallel-size 4",
    "pp2": f"{EP2} --pipeline-model-parallel-size 2",
    "vpp": "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1",
    "pp4": "--pipeline-model-parallel-size 4",
    "tp2": f"{EP2} --tensor-model-parallel-size 2 --sequence-parallel "
    "--expert-tensor-parallel-size 1 --spec grove_megatron.layer_spec grove_layer_spec",
    "etp2": "--tensor-model-parallel-size 2 --sequence-parallel --expert-tensor-parallel-size 2 "
    "--spec grove_megatron.layer_spec grove_layer_spec",
    "full": f"{EP2} --recompute-granularity full --recompute-method uniform "
    "--recompute-num-layers 1",
    "block": f"{EP2} --pipeline-model-parallel-size 2 --recompute-granularity full "
    "--recompute-method block --recompute-num-layers 1",
    "moe": f"{EP2} --recompute-granularity selective --recompute-modules moe",
    "layernorm": f"{EP2} --recompute-granularity selective --recompute-modules layernorm",
    "sequential": f"{EP2} --grove-kernel megatron",
}
EVERY_RUN = {("plain", "pp2"), ("groups", "moe")}


@pytest.fixture(scope="module")
def runner(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(ranks, tmp_path_factory)


def trained(runner: Runner, model: str, more: str, layout: str) -> object:
    """Ten steps from one checkpoint."""
    flags = [*MODELS[model], *more.split()]
    save = ["--train-iters", "1", "--save", "{tmp}/start", "--save-interval", "1"]
    start = runner(1, [*flags, *save, "--no-save-optim", "--no-save-rng"]).folder / "start"
    load = ["--load", str(start), "--finetune", "--no-load-optim", "--no-load-rng"]
    return runner(4, [*flags, *load, *layout.split()]).results()[-1]


def assert_alike(one: object, other: object) -> None:
    for name in ("losses", "grad_norms"):
        assert len(one[name]) == len(other[name]) == 10
    for a, b in zip(one["losses"], other["losses"], strict=True):
        assert [*a.values()] == pytest.approx([*b.values()], rel=1e-5)
    assert one["grad_norms"] == pytest.approx(other["grad_norms"], rel=1e-5)


CASES = [
    pytest.param(m, name, id=f"{m}-{name}", marks=[] if (m, name) in EVERY_RUN else [LONG])
    for m in MODELS
    for name in LAYOUTS
]


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_every_layout_is_one_model(model: str, layout: str, runner: Runner) -> None:
    alone = trained(runner, model, "", "")
    assert_alike(trained(runner, model, "", LAYOUTS[layout]), alone)


MORE = {
    "dense-between": "--moe-layer-freq [1,0,1,1]",
    "dense-first-and-last": "--moe-layer-freq [0,1,1,0]",
    "mtp": "--mtp-num-layers 1",
    "shared-expert": "--moe-shared-expert-intermediate-size 16",
    "distributed-optimizer": "--use-distributed-optimizer --overlap-grad-reduce",
}


@pytest.mark.parametrize("more", [pytest.param(m, id=n, marks=LONG) for n, m in MORE.items()])
def test_beside_what_a_model_may_have(more: str, runner: Runner) -> None:
    pp2 = f"{LAYOUTS['pp2']} --recompute-granularity selective --recompute-modules moe"
    alone = trained(runner, "groups", more, "")
    assert_alike(trained(runner, "groups", more, pp2), alone)


def test_logits_reach_the_next_router(runner: Runner) -> None:
    """And their gradients the one before: they are worth 1e-3 of its gradient."""
    flags = [*MODELS["plain"], "--num-layers", "2", *THREE]
    (step, _) = gradients(runner(1, flags), 0)
    maps = [step[f"0.decoder.layers.{n}.mlp.router.logits_residual.weight"] for n in (0, 1)]
    assert not maps[0].any()
    assert maps[1].abs().max() > 1e-4
    cut = gradients(runner(1, flags, how="train_with_logits_cut_off"), 0)[0]
    gate = "0.decoder.layers.0.mlp.router.gate_two_layer.second"
    assert (cut[gate] - step[gate]).abs().max() > 1e-3 * step[gate].abs().max()


@LONG
def test_stages_with_megatrons_all_gather(runner: Runner) -> None:
    """Which refuses lengths that vary, as those of stages only seem to."""
    gather, pp2 = "--moe-token-dispatcher-type allgather", "--pipeline-model-parallel-size 2"
    assert_alike(trained(runner, "plain", gather, pp2), trained(runner, "plain", "", ""))


@LONG
def test_experts_and_adjugates_are_those_of_the_equation(runner: Runner) -> None:
    """A token that skips the experts of a group skips its adjugate."""
    flags = [*MODELS["groups"], "--num-layers", "2", *THREE]
    by_hand = runner(1, [*flags, "--grove-kernel", "megatron"], how="train_by_the_equation")
    assert_gradients(runner(1, flags), by_hand, 1, 1e-5, grown=10)


def test_evaluation_leaves_nothing_behind(runner: Runner) -> None:
    flags = [*MODELS["groups"], "--num-layers", "2", *THREE]
    evaluated = runner(1, [*flags, "--eval-interval", "1", "--eval-iters", "2"])
    assert evaluated.results()[-1]["losses"] == runner(1, flags).results()[-1]["losses"]


@LONG
def test_it_goes_on_from_its_checkpoint_at_another_layout(runner: Runner) -> None:
    """Optimizer state and all: as if it had never stopped."""
    resharded = "--use-distributed-optimizer --dist-ckpt-optim-fully-reshardable".split()
    constant = ["--lr-decay-style", "constant", "--override-opt-param-scheduler"]
    flags = [*MODELS["groups"], *resharded, *constant]
    save = ["--train-iters", "4", "--save", "{tmp}/half", "--save-interval", "4"]
    half = runner(4, [*flags, *LAYOUTS["pp2"].split(), *save]).folder / "half"
    # A run that goes on writes down the steps that were left.
    rest = runner(4, [*flags, *LAYOUTS["ep4"].split(), "--load", str(half)]).results()[-1]
    whole = runner(4, [*flags, *LAYOUTS["pp2"].split()]).results()[-1]
    assert len(rest["losses"]) == 6
    for a, b in zip(rest["losses"], whole["losses"][4:], strict=True):
        assert [*a.values()] == pytest.approx([*b.values()], rel=1e-5)


def test_a_trace_of_the_routing_changes_nothing(runner: Runner) -> None:
    """Megatron's asks the router for the logits once more, behind its back."""
    flags = [*MODELS["plain"], "--num-layers", "2", *THREE]
    trace = "--moe-routing-trace-path {tmp}/trace --moe-routing-trace-capture-logits".split()
    assert_gradients(runner(1, [*flags, *trace]), runner(1, flags), 1, 1e-6)


def test_what_tokens_skip_is_seen(ranks: Ranks, tmp_path: Path) -> None:
    argv = [*MODELS["plain"], *EP2.split(), "--grove-metrics-dir", str(tmp_path / "metrics")]
    target = "tests.integration.recorded_run:train"
    job = ranks.run(2, target, str(tmp_path), argv, folder=tmp_path).check()
    assert re.search(r" without FFN: \d+\.\d% \|", job.log(1))
    intervals = read_record(tmp_path / "metrics" / "routing.jsonl").intervals
    assert len(intervals) == 10
    for interval in intervals:
        assert interval.run.local == {"constant": 2, "copy": 1, "zero": 1}
        measures = per_layer(interval)
        kinds = [measures[f"{kind}_per_token"] for kind in interval.run.local]
        assert sum(kinds) + measures["pairs_per_token"] == pytest.approx([2] * 4)
        assert measures["skipped_share"] == pytest.approx(sum(kinds) / 2)
        # What is sent is sent for an FFN.
        assert (measures["rows_per_token"] <= measures["pairs_per_token"]).all()
        assert (measures["rows_per_token"] > 0).all()
