"""``--grove-dispatch``: Megatron's own MoE with our layer around its router and its experts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from grove_megatron.report.measures import per_layer
from grove_megatron.report.record import read_record
from tests.integration.flags import PLAIN_MODEL
from tests.ranks import Ranks

TRAIN = "tests.integration.recorded_run:train"
DISPATCH = ["--grove-dispatch"]


def run(ranks: Ranks, folder: Path, size: int, *flags: str) -> tuple[list[dict[str, Any]], str]:
    """Results of every rank, and the log of the first."""
    job = ranks.run(size, TRAIN, str(folder), [*PLAIN_MODEL, *flags], folder=folder)
    return job.check().results(), job.log()


def assert_close(a: list[dict[str, Any]], b: list[dict[str, Any]], steps: int = 10) -> None:
    assert len(a[-1]["losses"]) == steps
    for x, y in zip(a, b, strict=True):
        for one, other in zip(x["losses"], y["losses"], strict=True):
            assert [*one.values()] == pytest.approx([*other.values()], rel=1e-6)
        assert x["grad_norms"] == pytest.approx(y["grad_norms"], rel=1e-6)


@pytest.mark.parametrize("parallel", [2, pytest.param(4, marks=pytest.mark.long)])
def test_a_plain_model_trains_as_with_megatrons_alltoall(
    parallel: int, ranks: Ranks, tmp_path: Path
) -> None:
    size = ["--expert-model-parallel-size", str(parallel)]
    stock, _ = run(ranks, tmp_path / "stock", parallel, *size)
    ours, log = run(ranks, tmp_path / "ours", parallel, *size, *DISPATCH)
    assert_close(ours, stock)
    (said,) = re.findall(r"^grove_megatron summary: (.*)$", log, re.M)
    summary = json.loads(said)
    assert summary["routed_pairs_per_token"] == 2
    # Two experts of a token are on one rank now and then.
    assert 1 < summary["rows_per_token"] < 2
    assert summary["adjugate_pairs_per_token"] == 0


TP2 = "--tensor-model-parallel-size 2 --sequence-parallel"
DEEPSEEK = (
    "--moe-router-score-function sigmoid --moe-router-enable-expert-bias --moe-router-topk 4 "
    "--moe-router-num-groups 4 --moe-router-group-topk 2 --moe-router-topk-scaling-factor 2.5 "
    "--moe-router-load-balancing-type seq_aux_loss --moe-shared-expert-intermediate-size 32"
)
SPEC = ["--spec", "grove_megatron.layer_spec", "grove_layer_spec"]
BESIDE = {
    # Megatron's own dispatch over expert tensor parallelism does not run on gloo.
    "tp2-etp1-ep4": (4, f"{TP2} --expert-model-parallel-size 4 --expert-tensor-parallel-size 1"),
    "tp2-etp1-ep2": (2, f"{TP2} --expert-model-parallel-size 2 --expert-tensor-parallel-size 1"),
    "pp2-vpp2-ep2": (
        4,
        "--pipeline-model-parallel-size 2 --num-layers 4 --expert-model-parallel-size 2 "
        "--num-virtual-stages-per-pipeline-rank 2 --global-batch-size 8",
    ),
    "mtp": (2, "--expert-model-parallel-size 2 --mtp-num-layers 1"),
    "deepseek": (2, f"--expert-model-parallel-size 2 {DEEPSEEK}"),
    "dense-first": (2, "--expert-model-parallel-size 2 --moe-layer-freq [0,1]"),
    "sinkhorn": (
        2,
        "--expert-model-parallel-size 2 --moe-router-load-balancing-type sinkhorn "
        "--moe-aux-loss-coeff 0",
    ),
    "capacity": (2, "--expert-model-parallel-size 2 --moe-expert-capacity-factor 1.0"),
    "recompute": (
        2,
        "--expert-model-parallel-size 2 --recompute-granularity full --recompute-method uniform "
        "--recompute-num-layers 1",
    ),
    "recompute-moe": (
        2,
        "--expert-model-parallel-size 2 --recompute-granularity selective --recompute-modules moe",
    ),
    "switch": (2, "--expert-model-parallel-size 2 --moe-router-topk 1 --moe-router-pre-softmax"),
    "allgather": (2, "--expert-model-parallel-size 2 --moe-token-dispatcher-type allgather"),
    "grouped": (2, "--expert-model-parallel-size 2 --moe-grouped-gemm"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", BESIDE)
def test_what_megatron_has_beside_experts_computes_the_same(
    name: str, ranks: Ranks, tmp_path: Path
) -> None:
    size, flags = BESIDE[name]
    more = [*flags.split(), "--train-iters", "3", "--lr-decay-iters", "3"]
    # Without TransformerEngine Megatron has no norm for sequence parallelism, our spec has.
    norm = SPEC if "--sequence-parallel" in more else []
    stock, _ = run(ranks, tmp_path / "stock", size, *more, *norm)
    ours, _ = run(ranks, tmp_path / "ours", size, *more, *DISPATCH)
    assert_close(ours, stock, 3)


SAVED = ["--save-interval", "5", "--lr-decay-iters", "10"]
MODULES = [*DISPATCH, "--grove-kernel", "megatron"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param([], DISPATCH, id="from-megatron"),
        pytest.param(DISPATCH, [], id="to-megatron", marks=pytest.mark.long),
        pytest.param([], MODULES, id="from-megatron-to-its-experts", marks=pytest.mark.long),
    ],
)
def test_a_run_goes_on_with_the_other_layer(
    first: list[str], second: list[str], ranks: Ranks, tmp_path: Path
) -> None:
    save = ["--save", str(tmp_path / "saved"), *SAVED]
    size = ["--expert-model-parallel-size", "2"]
    whole, _ = run(ranks, tmp_path / "whole", 2, *size, *SAVED)
    run(ranks, tmp_path / "first", 2, *size, *save, *first, "--exit-interval", "5")
    load = ["--load", str(tmp_path / "saved"), *SAVED]
    resumed, log = run(ranks, tmp_path / "second", 2, *size, *load, *second)
    assert "at iteration 5\n" in log
    for a, b in zip(whole, resumed, strict=True):
        expected = [step["lm loss"] for step in a["losses"][5:]]
        assert [step["lm loss"] for step in b["losses"]] == pytest.approx(expected, rel=1e-6)
        assert b["grad_norms"] == pytest.approx(a["grad_norms"][5:], rel=1e-6)


def test_states_in_memory_order_do_not_go_to_the_other_layer(ranks: Ranks, tmp_path: Path) -> None:
    """Either way: a run of Megatron's own would take our experts' moments for others."""
    saved = str(tmp_path / "saved")
    sharded = ["--use-distributed-optimizer", "--expert-model-parallel-size", "2"]
    save = ["--save", saved, *SAVED, "--exit-interval", "5"]
    run(ranks, tmp_path / "first", 2, *sharded, *save, *DISPATCH)
    argv = [*PLAIN_MODEL, *sharded, "--load", saved]
    job = ranks.run(2, TRAIN, str(tmp_path / "second"), argv, folder=tmp_path / "second")
    assert job.codes == [2, 2]
    assert "makes expert modules (SequentialMLP) that are not" in job.log()


def test_a_foreign_script_and_the_metrics_see_the_layer(ranks: Ranks, tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("stock_entry_script.py"))
    argv = [*PLAIN_MODEL, *DISPATCH, "--expert-model-parallel-size", "2"]
    argv += ["--grove-metrics-dir", str(tmp_path / "metrics")]
    job = ranks.run(
        2,
        "tests.integration.recorded_run:run_script",
        str(tmp_path),
        [script, *argv],
        folder=tmp_path,
    ).check()
    assert len(job.results()[0]["layers"]) == 2
    intervals = read_record(tmp_path / "metrics" / "routing.jsonl").intervals
    assert len(intervals) == 10
    for interval in intervals:
        measures = per_layer(interval)
        assert measures["pairs_per_token"].tolist() == [2, 2]
        assert all(1 < rows < 2 for rows in measures["rows_per_token"])
        assert "groups_per_token" not in measures
    assert "groups per token" not in job.log(1)
    assert "rows per token" in job.log(1)
