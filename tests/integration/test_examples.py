"""The examples do what their README says: they are run, not read."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.docs.outputs import check, shown

from .checkpoints import tensors
from .launching import REPOSITORY, launch, processes_that_name, reported_steps
from .weights_folders import tensors_of

EXAMPLES = REPOSITORY / "examples"


def shows(command: str, printed: str, document: str = "examples/README.md") -> None:
    """Fail unless a document shows what a command has printed."""
    check(shown(document, command), printed)


def _assert_ten_iterations(steps: dict[int, tuple[str, str]], output: str) -> None:
    assert sorted(steps) == list(range(1, 11)), output
    losses = [float(loss) for loss, _ in steps.values()]
    assert all(math.isfinite(float(number)) for step in steps.values() for number in step)
    # The mock data is learnt a little in 10 iterations (measured: 4.87 to 4.62).
    assert losses[-1] < losses[0] - 0.1


def test_two_ranks_train_ten_iterations() -> None:
    done = launch([str(EXAMPLES / "01_cpu_two_ranks.sh")])
    assert done.code == 0, done.output
    assert "runtime CPU with gloo (GROVE_RUNTIME=cpu)" in done.output
    _assert_ten_iterations(reported_steps(done.output), done.output)
    shows("examples/01_cpu_two_ranks.sh", done.output)


def test_moepp_trains_and_says_what_is_skipped() -> None:
    done = launch([str(EXAMPLES / "07_moepp.sh")])
    assert done.code == 0, done.output
    _assert_ten_iterations(reported_steps(done.output), done.output)
    skipped = [float(share) for share in re.findall(r" without FFN: ([\d.]+)% ", done.output)]
    assert len(skipped) == 10
    # 4 of 12 experts have no FFN.
    assert all(20 < share < 50 for share in skipped)
    summary = json.loads(done.output.split("grove_megatron summary: ")[1].splitlines()[0])
    assert summary["rows_per_token"] < summary["routed_pairs_per_token"] < 1.6
    shows("examples/07_moepp.sh", done.output)


def test_further_flags_win() -> None:
    done = launch([str(EXAMPLES / "01_cpu_two_ranks.sh"), "--grove-num-groups", "3"])
    assert done.code != 0
    command = "examples/01_cpu_two_ranks.sh --grove-num-groups 3"
    shows(command, done.output, "docs/guides/check.md")


@pytest.mark.long
def test_two_agents_train_one_model(tmp_path: Path) -> None:
    done = launch([str(EXAMPLES / "02_two_nodes_loopback.sh")], RUN_DIR=str(tmp_path))
    logs = [(tmp_path / f"node{node}.log").read_text() for node in (0, 1)]
    assert done.code == 0, "\n".join([done.output, *logs])
    first, second = (reported_steps(log) for log in logs)
    # Megatron prints the loss on the last rank, so that one log may have none of the lines.
    assert all(first[step] == second[step] for step in first.keys() & second.keys())
    _assert_ten_iterations(first | second, done.output)
    assert reported_steps(done.output) == first | second
    shows("examples/02_two_nodes_loopback.sh", done.output)
    # One job of four ranks, not two jobs of two.
    assert "using world size: 4" in logs[0]
    assert logs[0].count("grove_megatron summary: ") == 1
    assert "grove_megatron summary: " not in logs[1]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_agent_that_fails_ends_the_other(tmp_path: Path, failing: int) -> None:
    """The other agent waits in its rendezvous when this happens; nobody may be left behind."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *"--node-rank {failing}"*) sleep 6; exit 7;; esac\n'
        'exec "$REAL_PYTHON" "$@"\n'
    )
    python.chmod(0o755)
    run_dir = tmp_path / "run"
    done = launch(
        [str(EXAMPLES / "02_two_nodes_loopback.sh"), "--data-cache-path", str(tmp_path)],
        timeout=600,
        PYTHON=str(python),
        REAL_PYTHON=sys.executable,
        RUN_DIR=str(run_dir),
    )
    assert done.code == 7, done.output
    assert "an agent failed (exit code 7)" in done.output
    assert sorted(path.name for path in run_dir.iterdir()) == ["node0.log", "node1.log"]
    assert not processes_that_name(str(tmp_path))


@pytest.mark.long
def test_weights_come_in_are_trained_and_go_out(tmp_path: Path, golden_folder: Path) -> None:
    done = launch([str(EXAMPLES / "04_weights.sh")], timeout=500, RUN_DIR=str(tmp_path))
    assert done.code == 0, done.output
    printed = done.output.replace(str(tmp_path), "runs/weights")
    shows("RUN_DIR=runs/weights examples/04_weights.sh", printed)
    names = ("begin", "resume", "one_rank")
    logs = [(tmp_path / f"{name}.log").read_text() for name in names]
    for log, first, ranks in zip(logs, (1, 6, 11), (2, 2, 1), strict=True):
        assert sorted(reported_steps(log)) == list(range(first, first + 5))
        assert f"using world size: {ranks}" in log
        # The flag behind those of the import won.
        assert "load_balancing_loss" in log
    loaded = ("release distributed checkpoint from {}/import", *["{}/run at iteration {}"] * 2)
    for log, what, step in zip(logs, loaded, (0, 5, 10), strict=True):
        assert what.format(tmp_path, step) in log
    losses = [float(loss) for loss, _ in reported_steps(done.output).values()]
    assert len(losses) == 15
    # Measured: 5.17, and 3.79 at the end; no run begins where another one began.
    assert losses[0] - 0.5 > losses[5] > losses[10] > losses[14]
    before, after = tensors_of(golden_folder), tensors_of(tmp_path / "trained")
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in before.items()}
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())
    assert not any(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.long
def test_from_a_command_line_that_cannot_run_to_a_report(tmp_path: Path) -> None:
    done = launch([str(EXAMPLES / "05_doctor.sh"), "--train-iters", "20"], RUN_DIR=str(tmp_path))
    assert done.code == 0, done.output
    printed = done.output.replace(str(tmp_path), "runs/doctor")
    shows("RUN_DIR=runs/doctor examples/05_doctor.sh", printed)
    failed, refused, sound, job, drawn = re.split(r"^== .*\n", done.output, flags=re.M)[1:]
    problems = re.findall(r"^  \d\. (.*)$", failed, re.M)
    flags = ("moe-router-topk", "expert-model-parallel-size", "global-batch-size")
    flags += ("recompute-granularity", "save")
    assert [line.partition(" (")[0] for line in problems] == [f"--{flag}" for flag in flags]
    # The doctor says of the command what the job said, word for word.
    assert re.findall(r"^  \d\. (.*)$", refused, re.M) == problems
    assert "no problem found, 2 processes on cpu" in sound
    steps = reported_steps(job)
    assert sorted(steps) == [1, 5, 10, 15, 20]
    assert "| dead experts: 0 |" in job
    # What was planned is what was built.
    (planned,) = re.findall(r"^parameters +([\d,]+):", sound, re.M)
    (summary,) = re.findall(r"^grove_megatron summary: (.*)$", job, re.M)
    assert int(planned.replace(",", "")) == json.loads(summary)["params_total"]
    assert "report.html: the report" in drawn
    assert "<img" in (tmp_path / "report.html").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without CUDA")
@pytest.mark.parametrize("te", ["0", "1"])
def test_single_gpu_example_refuses_without_a_gpu(te: str) -> None:
    done = launch([str(EXAMPLES / "03_single_gpu.sh")], timeout=600, TE=te)
    assert done.code == 2
    shows("examples/03_single_gpu.sh", done.output)


@pytest.mark.long
def test_adjugates_are_trained_alone_and_then_everything(tmp_path: Path) -> None:
    done = launch([str(EXAMPLES / "08_staged.sh")], RUN_DIR=str(tmp_path))
    assert done.code == 0, done.output
    printed = done.output.replace(str(tmp_path), "runs/staged")
    shows("RUN_DIR=runs/staged examples/08_staged.sh", printed)
    parts = re.split(r"^== (\w+)\n\$ (.*)\n", done.output, flags=re.M)
    names, commands, shown = parts[1::3], [*map(shlex.split, parts[2::3])], parts[3::3]
    assert names == ["parent", "data", "upcycle", "plan", "adjugates", "all"]
    # What is planned is the next command, word for word.
    assert commands[3] == ["grove", "doctor", *commands[4]]
    (rank,) = re.findall(r"on a rank, ([\d,]+) of them trained; estimated MiB:\n", shown[3])
    (trained,) = re.findall(r"\(adjugates\): ([\d,]+) of 320,896 parameters are", shown[4])
    # Expert parallelism 2.
    assert 2 * int(rank.replace(",", "")) == int(trained.replace(",", "")) == 49_152
    first, second = (
        {step: float(loss) for step, (loss, _) in reported_steps(lines).items()}
        for lines in shown[4:]
    )
    assert [*first] == [*second] == [1, *range(10, 61, 10)]
    # Measured: 5.96 to 5.15, and from there to 1.63.
    assert first[60] < first[1] - 0.5
    assert abs(second[1] - first[60]) < 0.2
    assert second[60] < second[1] - 2
    folders = ("grove/release", "adjugates/iter_0000060", "all/iter_0000060")
    before, between, after = (tensors(tmp_path / folder) for folder in folders)
    weights = {name for name, tensor in before.items() if tensor.is_floating_point()}
    new = {name for name in weights if "adjugate_experts" in name}
    assert len(new) == 2
    moved = {name for name in weights if not torch.equal(before[name], between[name])}
    assert moved == new
    assert {name for name in weights if not torch.equal(between[name], after[name])} == weights


# Some of the models and two seeds, a few iterations each.
FEW = """
import sys
import time
from dataclasses import replace
from pathlib import Path

import compare

of = compare.COMPARISONS[{what!r}]
arms = tuple(arm for arm in of.arms if arm.name in {names})
compare.COMPARISONS[{what!r}] = replace(of, arms=arms, held_out=1, evaluations=2)
compare.FIGURES = Path({figures!r})
sys.exit(compare.main())
"""


def compare(tmp_path: Path, what: str, *names: str, options: tuple[str, ...] = ()) -> list[str]:
    """The command that compares two of the models."""
    code = FEW.format(what=what, names=names, figures=str(tmp_path / "cards" / "figures.json"))
    size = ("--iterations", "10", "--seeds", "2", "--out", str(tmp_path / "out"))
    return [sys.executable, "-c", code, what, *size, *options]


AT = {"PYTHONPATH": f"{EXAMPLES}{os.pathsep}{REPOSITORY}", "GROVE_RUNTIME": "cpu"}


@pytest.mark.long
def test_models_are_compared_and_finished_runs_kept(tmp_path: Path) -> None:
    command, out = compare(tmp_path, "moepp", "plain", "Grove x MoE++"), tmp_path / "out"
    done = launch(command, **AT)
    assert done.code == 0, done.output
    results = json.loads((out / "results.json").read_text())
    assert [one["name"] for one in results["models"]] == ["plain", "Grove x MoE++"]
    plain, both = results["models"]
    assert len(results["curves"]) == 4
    assert all(4 < loss < 5.6 for one in results["models"] for loss in one["losses"])
    assert plain["experts_per_token"] == 4 > both["experts_per_token"] > 2
    # Begun with random weights, and with other ones for every seed.
    assert len({loss for one in results["models"] for loss in one["losses"]}) == 4
    assert (out / "table.md").read_text() in done.output
    assert (out / "comparison.png").stat().st_size > 10_000
    (out / "plain-2" / "done.json").unlink()
    again = launch(command, **AT)
    assert again.code == 0, again.output
    assert "3 of 4 runs were finished before" in again.output
    assert json.loads((out / "results.json").read_text()) == results


@pytest.mark.long
def test_routers_are_compared_and_go_on_after_a_kill(tmp_path: Path) -> None:
    command = compare(tmp_path, "routers", "plain", "hash, balanced", options=("--update",))
    out = tmp_path / "out"
    killed = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **AT})
    begun = time.monotonic()
    while not any(out.glob("*/done.json")):
        assert killed.poll() is None, "it ended before its first run"
        assert time.monotonic() < begun + 600
        time.sleep(0.2)
    finished = {file.parent.name: file.read_text() for file in out.glob("*/done.json")}
    killed.send_signal(signal.SIGTERM)
    assert killed.wait(120) == 128 + signal.SIGTERM
    assert not (out / "results.json").exists()
    done = launch(command, **AT)
    assert done.code == 0, done.output
    assert re.search(r"^[123] of 4 runs were finished before$", done.output, re.MULTILINE)
    # They were not made again.
    assert all((out / name / "done.json").read_text() == text for name, text in finished.items())
    plain, hashed = json.loads((out / "results.json").read_text())["routers"]
    assert len({*plain["losses"], *hashed["losses"]}) == 4
    assert all(4 < loss < 5.6 for one in (plain, hashed) for loss in one["losses"])
    assert (plain["pairs_per_token"], hashed["pairs_per_token"]) == (2, 1)
    # A table in place of a matrix.
    assert plain["parameters"] - hashed["parameters"] == 2 * 16 * 128
    assert 0.2 < plain["speed"] < 5
    assert (out / "table.md").read_text() in done.output
    assert "--grove-hash-counts data/counts.json" in (out / "comparison.html").read_text()
    assert (out / "comparison.png").stat().st_size > 10_000
    cards = json.loads((tmp_path / "cards" / "figures.json").read_text())
    assert cards["command"] == "examples/compare.py routers --iterations 10 --seeds 2"
    rows = {row["part"]: row for row in cards["rows"]}
    assert rows.keys() == {"selector-topk", "scoring-softmax", "selector-hash"}
    assert rows["selector-hash"]["tokens_per_second"] > 100


@pytest.mark.long
def test_the_whole_way_is_that_of_its_page(tmp_path: Path) -> None:
    """The page's commands, and the lines that it shows of them, but for their numbers."""
    done = launch([str(EXAMPLES / "06_whole_way.sh")], timeout=1800, RUN_DIR=str(tmp_path))
    assert done.code == 0, done.output
    page = (EXAMPLES / "whole_way.md").read_text()
    shown = "".join(re.findall(r"```text\n(.*?)```", page, re.DOTALL)).splitlines()
    lines = done.output.replace(str(tmp_path), "runs/way").splitlines()
    found = [line for line in lines if not line.startswith(("== ", "results"))]
    assert [masked(line) for line in found] == [masked(line) for line in shown]
    losses = [float(n) for n in re.findall(r"^loss: (\S+)", done.output, re.MULTILINE)]
    scores = [float(n) for n in re.findall(r"^accuracy: (\S+)", done.output, re.MULTILINE)]
    # Measured: 5.96 to 1.18, then 1.44; 0.2, 0.1 and 1.
    assert losses[1] < losses[0] - 3
    assert scores[2] > max(scores[:2]) + 0.3
    (answered,) = re.findall(r"^->  (\w+)", done.output, re.MULTILINE)
    assert f"transformers: {answered}<|im_end|>" in done.output


def masked(line: str) -> str:
    """Without numbers, and without the words for them that a model says."""
    words = r"(?<=->  )\w+|(?<=transformers: )\w+"
    return re.sub(rf"{words}|[\d.,]*\d(E[+-]\d+|e[+-]\d+)?%?", "#", line)
