"""A run goes on at another layout: with its weights, its moments and its step.

One uninterrupted run of 10 iterations saves at 5. A run at another layout loads that, saves it
again before its first step, and trains the other ten iterations.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.checkpoints import differences, tensors
from tests.integration.flags import MODEL
from tests.ranks import Ranks

RUN = "tests.integration.recorded_run"
Results = list[dict[str, Any]]

EP2 = ["--expert-model-parallel-size", "2"]
EP4 = ["--expert-model-parallel-size", "4"]
PP2 = ["--pipeline-model-parallel-size", "2"]
TP2 = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
ETP1 = ["--expert-tensor-parallel-size", "1"]
MEGATRONS = ["--grove-kernel", "megatron"]
GROUPED = ["--grove-kernel", "grouped"]
# On two stages the first rank has no expert, and so no state of the experts' optimizer.
LATE = ["--moe-layer-freq", "[0,1]"]

# name: (ranks, flags). Data-parallel size: ranks / (tensor- and pipeline-parallel size).
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "one": (1, GROUPED),
    "dp2": (2, GROUPED),
    "dp4": (4, MEGATRONS),
    "ep2": (2, [*EP2, *GROUPED]),
    "ep2-dp2": (4, [*EP2, *GROUPED]),
    "ep2-megatrons": (2, [*EP2, *MEGATRONS]),
    "ep4": (4, [*EP4, *GROUPED]),
    "pp2": (2, [*PP2, *GROUPED]),
    "pp2-ep2": (4, [*PP2, *EP2, *GROUPED]),
    "pp2-ep2-megatrons": (4, [*PP2, *EP2, *MEGATRONS]),
    "tp2-etp2": (2, [*TP2, *MEGATRONS]),
    "tp2-etp2-ep2": (4, [*TP2, *EP2, *GROUPED]),
    "tp2-etp1": (2, [*TP2, *ETP1, *GROUPED]),
    "tp2-etp1-ep2": (2, [*TP2, *ETP1, *EP2, *MEGATRONS]),
    "late-one": (1, [*LATE, *GROUPED]),
    "late-pp2-ep2": (4, [*LATE, *PP2, *EP2, *GROUPED]),
}

# name: (flags, relative tolerance of losses and norms)
OPTIMIZERS: dict[str, tuple[list[str], float]] = {
    "fp32": ([], 1e-5),
    "distributed": (["--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable"], 1e-5),
    # Megatron's default, in the order of parameters in memory.
    "bucketed": (["--use-distributed-optimizer"], 1e-5),
    # A sum in bf16 that is taken in another order differs in the third digit, and soon in the loss.
    "bf16": (["--bf16"], 2e-2),
}

# (optimizer, saved at, loaded at)
CASES = [
    ("distributed", "one", "pp2-ep2"),
]
LONG = [
    ("fp32", "pp2-ep2-megatrons", "one"),
    ("fp32", "one", "tp2-etp1-ep2"),
    ("distributed", "pp2-ep2-megatrons", "tp2-etp2"),
    ("distributed", "late-pp2-ep2", "late-one"),
    ("bf16", "one", "ep2-megatrons"),
    ("bf16", "ep4", "dp2"),
    ("fp32", "one", "ep4"),
    ("fp32", "one", "dp4"),
    ("fp32", "dp4", "ep2"),
    ("fp32", "dp4", "tp2-etp2-ep2"),
    ("fp32", "tp2-etp2-ep2", "pp2"),
    ("fp32", "tp2-etp2-ep2", "tp2-etp1"),
    ("fp32", "tp2-etp1", "ep4"),
    ("fp32", "ep4", "dp2"),
    ("fp32", "late-pp2-ep2", "late-one"),
    ("distributed", "tp2-etp1-ep2", "one"),
    ("distributed", "tp2-etp1-ep2", "tp2-etp2-ep2"),
    ("distributed", "one", "dp4"),
    ("bf16", "one", "pp2-ep2"),
]


@dataclass
class Runs:
    """Runs whole trainings, each once, and their continuations."""

    ranks: Ranks
    factory: pytest.TempPathFactory
    done: dict[tuple[str, str], tuple[Results, Path]]

    def whole(self, optimizer: str, layout: str) -> tuple[Results, Path]:
        """What 10 uninterrupted iterations recorded, and the checkpoints of 5 and 10."""
        if (optimizer, layout) not in self.done:
            folder = self.factory.mktemp(f"{optimizer}-{layout}")
            save = ["--save", str(folder / "saved"), "--save-interval", "5"]
            job = self._run(optimizer, layout, "recorded_run:train", folder, save)
            self.done[optimizer, layout] = job, folder / "saved"
        return self.done[optimizer, layout]

    def resumed(self, optimizer: str, layout: str, load: Path, folder: Path) -> Results:
        """The same from the checkpoint of iteration 5; ``folder`` gets it saved again."""
        flags = ["--load", str(load), "--ckpt-step", "5"]
        again = str(folder / "again")
        return self._run(
            optimizer, layout, "resumed_run:train_and_show_first", folder, flags, again
        )

    def _run(
        self, optimizer: str, layout: str, what: str, folder: Path, flags: list[str], *args: str
    ) -> Results:
        world_size, sizes = LAYOUTS[layout]
        common = ["--train-iters", "10", "--lr-decay-iters", "10", *OPTIMIZERS[optimizer][0]]
        argv = [*MODEL, *common, *sizes, *flags]
        target = f"tests.integration.{what}"
        job = self.ranks.run(world_size, target, str(folder), argv, *args, folder=folder)
        return job.check().results()


@pytest.fixture(scope="module")
def runs(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(ranks, tmp_path_factory, {})


@pytest.mark.parametrize(
    ("optimizer", "saved_at", "loaded_at"),
    [
        pytest.param(*case, id="-".join([case[0], case[1], "to", case[2]]), marks=marks)
        for cases, marks in ((CASES, []), (LONG, [pytest.mark.long]))
        for case in cases
    ],
)
def test_training_goes_on_at_another_layout(
    optimizer: str, saved_at: str, loaded_at: str, runs: Runs, tmp_path: Path
) -> None:
    whole, saved = runs.whole(optimizer, saved_at)
    resumed = runs.resumed(optimizer, loaded_at, saved, tmp_path)
    # Weights, fp32 weights and moments, by the names of the parameters and their global places.
    assert differences(saved / "iter_0000005", tmp_path / "again" / "iter_0000005") == []
    assert_steps(tmp_path, len(resumed), 5.0)
    assert_goes_on(whole, resumed, OPTIMIZERS[optimizer][1])


def test_a_checkpoint_has_transformer_engine_s_keys(runs: Runs) -> None:
    _, saved = runs.whole("distributed", "one")
    norms = {key for key in tensors(saved / "iter_0000005") if "norm" in key}
    layers = "decoder.layers."
    assert {key for key in norms if not key.startswith("optimizer.")} == {
        f"{layers}self_attention.linear_qkv.layer_norm_weight",
        f"{layers}pre_mlp_layernorm.weight",
        "decoder.final_layernorm.weight",
    }


@pytest.mark.parametrize(
    ("saved_at", "loaded_at"),
    [
        pytest.param("ep2", "ep2-dp2", marks=pytest.mark.long),
        pytest.param("ep2-dp2", "ep2", marks=pytest.mark.long),
    ],
)
def test_states_in_memory_order_go_to_another_data_parallel_size(
    saved_at: str, loaded_at: str, runs: Runs, tmp_path: Path
) -> None:
    whole, saved = runs.whole("bucketed", saved_at)
    resumed = runs.resumed("bucketed", loaded_at, saved, tmp_path)
    assert_steps(tmp_path, len(resumed), 5.0)
    # What lies between parameters in memory was never written, so tensors are not compared.
    assert_goes_on(whole, resumed, OPTIMIZERS["bucketed"][1])


def test_states_in_memory_order_go_to_no_other_layout(runs: Runs, tmp_path: Path) -> None:
    _, saved = runs.whole("bucketed", "ep2")
    assert (
        "saves loads at any data-parallel size, but only with --tensor-model-parallel-size 1"
        in (saved.parent / "rank0.log").read_text()
    )
    flags = [*MODEL, *OPTIMIZERS["bucketed"][0], *EP4, "--load", str(saved)]
    job = runs.ranks.run(4, f"{RUN}:train", str(tmp_path), flags, folder=tmp_path)
    assert job.codes == [2, 2, 2, 2]
    assert (
        "  1. --expert-model-parallel-size (4) differs from --expert-model-parallel-size of the "
        "checkpoint (2), whose distributed optimizer state fits no other; use the same, or save "
        "once with --dist-ckpt-optim-fully-reshardable at the old layout, or give --no-load-optim"
    ) in job.log()
    flags += ["--use-checkpoint-args", "--grove-kernel", "megatron"]
    job = runs.ranks.run(4, f"{RUN}:train", str(tmp_path), flags, folder=tmp_path)
    assert job.codes == [2, 2, 2, 2]
    assert "  2. --grove-kernel (megatron) makes expert modules (SequentialMLP)" in job.log()


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["distributed", "fp32"])
def test_a_first_rank_without_experts_loses_no_step(
    optimizer: str, runs: Runs, tmp_path: Path
) -> None:
    whole, saved = runs.whole(optimizer, "late-pp2-ep2")
    resumed = runs.resumed(optimizer, "late-pp2-ep2", saved, tmp_path)
    assert_steps(tmp_path, len(resumed), 5.0)
    for a, b in zip(whole, resumed, strict=True):
        assert b["losses"] == a["losses"][5:]
        assert b["grad_norms"] == a["grad_norms"][5:]
        assert b["parameters"] == a["parameters"]


def assert_goes_on(whole: Results, resumed: Results, tolerance: float) -> None:
    """Losses and gradient norms of the last five iterations."""
    expected = [step["lm loss"] for step in whole[-1]["losses"][5:]]
    assert len(expected) == 5
    seen = [step["lm loss"] for step in resumed[-1]["losses"]]
    assert seen == pytest.approx(expected, rel=tolerance)
    assert resumed[-1]["grad_norms"] == pytest.approx(whole[-1]["grad_norms"][5:], rel=tolerance)


def assert_steps(folder: Path, world_size: int, expected: float) -> None:
    """Every parameter on every rank has taken as many steps as the run."""
    seen = [json.loads((folder / f"loaded{rank}.json").read_text()) for rank in range(world_size)]
    steps = [of_one for of_rank in seen for of_one in of_rank if of_one]
    assert steps
    assert all(of_one == [expected] for of_one in steps)
