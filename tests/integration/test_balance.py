"""Expert biases of real training: what the counts make of them, and the same after a resume."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.flags import MODEL
from tests.ranks import Ranks

RUN = "tests.integration.balanced_run"
SCRIPT = str(Path(__file__).with_name("stock_entry_script.py"))
EP2 = ["--expert-model-parallel-size", "2"]
PP2 = ["--pipeline-model-parallel-size", "2"]
FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1".split()
RATE, DECAY = 0.03, 5
BALANCED = (
    "--train-iters 6 --lr-decay-iters 6 --moe-router-enable-expert-bias "
    f"--moe-router-bias-update-rate {RATE} --grove-bias-rate-decay-style linear "
    f"--grove-bias-rate-decay-iters {DECAY} --grove-group-aux-loss-coeff 1e-2"
).split()

# name: (ranks, flags, layers with experts, tokens that choose experts in a global batch)
LAYOUTS: dict[str, tuple[int, list[str], set[str]]] = {
    "ep2": (2, EP2, {"1", "2"}),
    "pp2-ep2-recompute": (4, [*PP2, *EP2, *FULL], {"1", "2"}),
    # The first stage has no router.
    "late-pp2": (2, [*PP2, "--moe-layer-freq", "[0,1]"], {"2"}),
    "mtp": (2, [*EP2, "--mtp-num-layers", "1"], {"1", "2", "mtp 1"}),
    "bf16": (2, [*EP2, "--bf16"], {"1", "2"}),
    "sign": (2, [*EP2, "--grove-bias-update-rule", "sign"], {"1", "2"}),
    "capacity": (2, [*EP2, "--moe-expert-capacity-factor", "1.0"], {"1", "2"}),
}
# 8 sequences of 32 tokens, 2 experts each.
PAIRS = 4 * 32 * 2
History = list[dict[str, dict[str, Any]]]


def run(
    ranks: Ranks, layout: str, folder: Path, *flags: str, how: str = "train"
) -> tuple[History, list[dict[str, Any]]]:
    """Train; the history of every layer with the counts of all ranks summed, and the records."""
    world_size, of_layout, layers = LAYOUTS[layout]
    argv = [*([SCRIPT] if how == "run_script" else []), *MODEL, *BALANCED, *of_layout, *flags]
    job = ranks.run(world_size, f"{RUN}:{how}", str(folder), argv, folder=folder)
    records = job.check().results()
    everyone: list[History] = [
        json.loads((folder / f"balance{rank}.json").read_text()) for rank in range(world_size)
    ]
    history: History = []
    for step in zip(*everyone, strict=True):
        history.append({})
        for of_rank in step:
            for layer, seen in of_rank.items():
                assert seen["left"] == 0
                if layer not in history[-1]:
                    history[-1][layer] = seen
                    continue
                whole = history[-1][layer]
                assert seen["bias"] == whole["bias"], "differs between ranks"
                whole["counts"] = [
                    a + b for a, b in zip(whole["counts"], seen["counts"], strict=True)
                ]
        assert history[-1].keys() == layers
    return history, records


def bias_of(bits: list[int]) -> torch.Tensor:
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32).double()


def replayed(history: History, layer: str, rule: str) -> list[torch.Tensor]:
    """The bias after every iteration, by the rule as it is written, from the counts alone."""
    bias, after = torch.zeros(8, dtype=torch.float64), []
    for iteration, step in enumerate(history):
        load = torch.tensor(step[layer]["counts"], dtype=torch.float64)
        error = load / load.sum() - 1 / len(load)
        rate = RATE * max(0.0, 1 - iteration / DECAY)
        unit = error.sign() if rule == "sign" else error / error.square().mean().sqrt()
        bias = bias - rate * unit
        after.append(bias)
    return after


@pytest.mark.parametrize(
    "layout", [pytest.param(n, marks=[pytest.mark.long] if n != "ep2" else []) for n in LAYOUTS]
)
def test_the_bias_is_what_the_counts_make_of_it_and_a_resumed_run_ends_with_it(
    layout: str, ranks: Ranks, tmp_path: Path
) -> None:
    save = ["--save", str(tmp_path / "saved"), "--save-interval", "3"]
    history, records = run(ranks, layout, tmp_path / "whole", *save)
    assert len(history) == 6
    last = LAYOUTS[layout][0] - 1
    log = (tmp_path / "whole" / f"rank{last}.log").read_text()
    assert log.count("group_load_balancing_loss: ") == 6
    rule = "sign" if layout == "sign" else "rms"
    for layer in history[0]:
        for step in history:
            assert sum(step[layer]["counts"]) == PAIRS
        for step, expected in zip(history, replayed(history, layer, rule), strict=True):
            # Six roundings to fp32 of numbers below 0.25.
            assert (bias_of(step[layer]["bias"]) - expected).abs().max() <= 6 * 2**-27
        # The rate has come down to 0.
        assert history[5][layer]["bias"] == history[4][layer]["bias"]
        assert history[4][layer]["bias"] != history[3][layer]["bias"]
    load = ["--load", str(tmp_path / "saved"), "--ckpt-step", "3"]
    again, resumed = run(ranks, layout, tmp_path / "resumed", *load)
    assert again == history[3:]
    for one, other in zip(records, resumed, strict=True):
        assert other["losses"] == one["losses"][3:]
        assert other["parameters"] == one["parameters"]


@pytest.mark.long
def test_a_foreign_script_moves_the_bias_as_the_launcher_does(ranks: Ranks, tmp_path: Path) -> None:
    ours, _ = run(ranks, "ep2", tmp_path / "ours")
    foreign, _ = run(ranks, "ep2", tmp_path / "foreign", how="run_script")
    assert foreign == ours
