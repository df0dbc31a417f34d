"""Experts, and whole ranks, that get no token: the job goes on, and computes the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import Job, Ranks

from .flags import MODEL
from .skewed_run import GRADIENTS

LONG = pytest.mark.long
SKEWED = "tests.integration.skewed_run:train_skewed"
EP2 = ["--expert-model-parallel-size", "2"]
# Stacked experts, whose gradients can be told apart; Megatron needs the flag to start a bucket's
# reduction when its last gradient is there, and fails if one never comes.
FLAGS = [*MODEL, "--grove-kernel", "grouped", "--overlap-grad-reduce", "--moe-z-loss-coeff", "0"]
TOP_1 = "--grove-router-scoring softmax --moe-router-topk 1 --moe-router-pre-softmax".split()
# Top-2 needs two experts; all of them and their adjugates are those of rank 0 with EP2.
SKEWS = {
    "one-idle": ([5], []),
    "two-get-all": ([2, 3, 4, 5, 6, 7], []),
    "one-gets-all": ([1, 2, 3, 4, 5, 6, 7], TOP_1),
}


def run(ranks: Ranks, folder: Path, idle: list[int], *flags: str) -> Job:
    argv = [*FLAGS, *flags]
    return ranks.run(2, SKEWED, str(folder), argv, idle, folder=folder).check()


def go_on_at(saved: Path, iteration: int) -> None:
    (saved / "latest_checkpointed_iteration.txt").write_text(str(iteration))


def gradients(job: Job) -> dict[str, float]:
    """Of all ranks; a name of each of them."""
    found: dict[str, float] = {}
    for rank in range(len(job.codes)):
        of_rank = json.loads((job.folder / f"{GRADIENTS}{rank}.json").read_text())
        found |= {f"{rank}.{name}": value for name, value in of_rank.items()}
    return found


def losses(job: Job) -> list[dict[str, Any]]:
    results = job.results()
    last: list[dict[str, Any]] = results[-1]["losses"]
    return last


@LONG
@pytest.mark.parametrize(
    ("skew", "dispatcher"), [("two-get-all", "alltoall"), ("one-gets-all", "allgather")]
)
def test_all_tokens_to_one_rank_compute_what_one_rank_computes(
    skew: str, dispatcher: str, ranks: Ranks, tmp_path: Path
) -> None:
    idle, more = SKEWS[skew]
    saved = tmp_path / "save"
    flags = [*more, "--moe-token-dispatcher-type", dispatcher, "--train-iters", "5"]
    flags += ["--save", str(saved), "--save-interval", "3"]
    whole = run(ranks, tmp_path / "ep1", idle, *flags)
    go_on_at(saved, 3)
    split = run(ranks, tmp_path / "ep2", idle, *flags, "--load", str(saved), *EP2)
    for a, b in zip(losses(whole)[-2:], losses(split), strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    norms = [job.results()[0]["grad_norms"][-2:] for job in (whole, split)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    # Experts and adjugates without tokens: zero gradients, and not none.
    assert set(gradients(split).values()) == {0.0}
    # One row a token, to rank 0; an all-gather brings it to both ranks, whatever is chosen.
    copies = 2 if dispatcher == "allgather" else 1
    layers = [layer for result in split.results() for layer in result["layers"]]
    assert len(layers) == 4
    assert all(layer["rows"] == copies * layer["tokens"] for layer in layers)


@LONG
def test_an_expert_without_tokens_for_100_iterations(ranks: Ranks, tmp_path: Path) -> None:
    """Told of once; optimizer and checkpoint go on with it."""
    small = "--num-layers 1 --seq-length 8 --max-position-embeddings 8 --global-batch-size 2"
    saved = str(tmp_path / "save")
    flags = [
        *EP2,
        *small.split(),
        "--train-iters",
        "104",
        "--save",
        saved,
        "--load",
        saved,
        "--save-interval",
        "102",
    ]
    whole = run(ranks, tmp_path / "whole", [5], *flags)
    assert set(gradients(whole).values()) == {0.0}
    log = "".join(whole.log(rank) for rank in range(2))
    line = (
        "experts without a token for 100 iterations or more at iteration 100 (layer 1: 5) "
        "no longer learn; the job goes on."
    )
    assert log.count(line) == log.count("without a token") == 1
    go_on_at(tmp_path / "save", 102)
    again = run(ranks, tmp_path / "again", [5], *flags)
    assert losses(again) == losses(whole)[-2:]
    for a, b in zip(whole.results(), again.results(), strict=True):
        assert a["parameters"] == b["parameters"]
