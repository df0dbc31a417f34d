"""A placement made of what a real job recorded, beside every token that the job routed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from grove_megatron.cli import app
from grove_megatron.placing import file
from grove_megatron.placing.greedy import balanced, rank_loads
from grove_megatron.report.record import read_record
from tests.integration.flags import MODEL
from tests.ranks import Ranks

E, G, K = 32, 16, 4
SIZES = ["--num-experts", "32", "--moe-router-topk", "4", "--grove-num-groups", "16"]
COUNTED = ["--grove-metrics-coactivation", "--grove-metrics-interval", "1"]


@pytest.fixture(scope="module")
def trained(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The record's folder, and what every rank routed."""
    folder = tmp_path_factory.mktemp("coactivated")
    argv = [*MODEL, *SIZES, *COUNTED, "--expert-model-parallel-size", "2", "--train-iters", "8"]
    argv += ["--global-batch-size", "16", "--grove-metrics-dir", str(folder / "metrics")]
    target = "tests.integration.coactivated_job:train"
    job = ranks.run(2, target, str(folder), argv, folder=folder).check()
    return folder / "metrics", job.results()


def routed(results: list[Any], layer: str, iterations: slice) -> list[list[int]]:
    return [t for r in results for step in r["steps"][iterations] for t in step[layer]]


def rows(tokens: list[list[int]], order: tuple[int, ...], ranks: int) -> float:
    """Ranks that a token meets, one by one."""
    rank_of = {unit: slot * ranks // G for slot, unit in enumerate(order)}
    return float(np.mean([len({rank_of[e * G // E] for e in t}) for t in tokens]))


def placed(record: Path, ranks: int, output: Path) -> dict[str, Any]:
    argv = ["place", str(record), "--expert-parallel", str(ranks), "--output", str(output)]
    result = CliRunner().invoke(app, [*argv, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_a_saving_is_that_of_the_tokens_the_job_routed(
    trained: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    record, results = trained
    found = placed(record, 4, tmp_path / "p.json")
    made = file.read(tmp_path / "p.json")
    intervals = read_record(record / "routing.jsonl").intervals
    assert found["moved"] == ["1", "2"]
    for index, (layer, of_layer) in enumerate(found["layers"].items()):
        # Those of the half that judged.
        judging = routed(results, layer, slice(1, None, 2))
        now, new = (rows(judging, o, 4) for o in (tuple(range(G)), made.order(layer)))
        # Of rows that cross to another rank, the same share.
        assert 1 - new / now >= 0.31
        even, *_ = of_layer["before"]["rows"]
        _, low, high = of_layer["after"]["rows"]
        assert even == pytest.approx(now, rel=0.03)
        # Pairs of a few groups tell it to some hundredths.
        assert low * 0.94 <= new <= high * 1.03
        assert of_layer["saved_at_least"] <= now - new + 0.05
        load = sum(i.experts[index].reshape(G, -1).sum(1) for i in intervals).astype(float)
        rank_U = np.empty(G, int)
        rank_U[list(made.order(layer))] = np.arange(G) // 4
        greedy = rank_loads(load, balanced(load, 4), 4).max()
        assert rank_loads(load, rank_U, 4).max() <= 1.02 * greedy


def test_a_trace_of_the_same_tokens_tells_it_exactly(
    trained: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    _, results = trained
    # Every rank's tokens beside one another, step by step, as ranks of one job have them.
    layers = {
        layer: [t for step in range(8) for t in routed(results, layer, slice(step, step + 1))]
        for layer in ("1", "2")
    }
    trace = tmp_path / "trace.safetensors"
    tensors = {f"layers.{n}": np.array(of, np.int16) for n, of in layers.items()}
    save_file(tensors, trace, {"experts": str(E), "groups": str(G)})
    found = placed(trace, 4, tmp_path / "p.json")
    made = file.read(tmp_path / "p.json")
    for layer, of_layer in found["layers"].items():
        pieces = np.array_split(np.array(layers[layer]), 32)[1::2]
        judging = [t for piece in pieces for t in piece.tolist()]
        now, new = (rows(judging, o, 4) for o in (tuple(range(G)), made.order(layer)))
        assert of_layer["before"]["rows"] == pytest.approx([now] * 3)
        assert of_layer["after"]["rows"] == pytest.approx([new] * 3)
        assert of_layer["saved_at_least"] == pytest.approx(now - new)
        assert 1 - new / now >= 0.31


def test_rows_of_the_order_in_use_are_those_that_the_job_counted(
    trained: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    record, results = trained
    found = placed(record, 2, tmp_path / "p.json")
    for layer, of_layer in found["layers"].items():
        judging = routed(results, layer, slice(1, None, 2))
        assert of_layer["counted"] == pytest.approx(rows(judging, tuple(range(G)), 2))
        assert of_layer["before"]["rows"][0] == pytest.approx(of_layer["counted"], rel=0.03)


@pytest.mark.long
def test_a_job_with_the_placement_sends_as_few_rows_as_were_told(
    ranks: Ranks, tmp_path: Path
) -> None:
    """At 4 ranks: recorded, placed, run again, counted."""

    def train(name: str, *more: str) -> Path:
        folder = tmp_path / name
        argv = [*MODEL, *SIZES, *COUNTED, "--expert-model-parallel-size", "4", *more]
        argv += ["--train-iters", "8", "--global-batch-size", "16"]
        argv += ["--grove-metrics-dir", str(folder / "metrics")]
        target = "tests.integration.coactivated_job:train"
        ranks.run(4, target, str(folder), argv, folder=folder).check()
        return folder / "metrics"

    def rows_of(record: Path, layer: int) -> float:
        counted = read_record(record / "routing.jsonl").intervals
        sent = sum(int(one.rows[layer].sum()) for one in counted)
        return sent / sum(int(one.sent_tokens[layer]) for one in counted)

    plain = train("plain")
    found = placed(plain, 4, tmp_path / "p.json")
    assert found["moved"] == ["1", "2"]
    again = train("placed", "--grove-placement", str(tmp_path / "p.json"))
    for index, of_layer in enumerate(found["layers"].values()):
        now, new = rows_of(plain, index), rows_of(again, index)
        _, low, high = of_layer["after"]["rows"]
        assert low * 0.94 <= new <= high * 1.03
        assert 1 - new / now >= 0.31
