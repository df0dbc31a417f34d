"""The rows of grove_megatron.switches that need CUDA or TransformerEngine, each on its own ranks.

Rows of more ranks than there are GPUs run on one, where all that needs a second is expert
parallelism, and are skipped with that reason otherwise: NCCL wants a GPU for each rank.
"""

import shlex
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch

from grove_megatron.switches import Works, works
from tests.gpu.flags import ENGINE, LOCAL
from tests.integration.flags import MODEL, PLAIN_MODEL
from tests.integration.switch_runs import (
    SCALE_0,
    THREE,
    Runner,
    assert_gradients,
    assert_losses,
    losses,
    without_grove,
)
from tests.ranks import Ranks

pytestmark = pytest.mark.gpu

EXPERT_PARALLEL = "--expert-model-parallel-size 2"
# What does nothing, or is refused by Megatron, without a second rank.
OF_SEVERAL_RANKS = {
    "--tensor-model-parallel-size",
    "--pipeline-model-parallel-size",
    "--context-parallel-size",
    "--overlap-moe-expert-parallel-comm",
}
# TransformerEngine multiplies fp32 in TF32, and otherwise in 16 bits: another order of sums, which
# Megatron's dispatch has, makes some tokens choose other experts. On a CPU in bf16 that changed
# five losses by 2.4e-4, and single gradients by half of their largest entry.
BESIDE_MEGATRON = 2e-3


@pytest.fixture(scope="module")
def runner(gpu_ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(gpu_ranks, tmp_path_factory)


class Prepared:
    """A row as it runs on this machine: how many ranks, and with which flags."""

    def __init__(self, row: Works, gpus: int) -> None:
        layout = row.layout
        self.ranks = row.ranks
        if row.ranks > gpus:
            layout = layout.replace(EXPERT_PARALLEL, "")
            if OF_SEVERAL_RANKS & {*layout.split(), *row.flags.split()}:
                pytest.skip(f"needs {row.ranks} GPUs, found {gpus}")
            self.ranks = 1
        self.flags = row.flags.split()
        self.base = ENGINE if row.needs in ("te", "mxfp8") else LOCAL
        self.layout = [*self.base, *THREE, *shlex.split(layout)]


@pytest.fixture
def prepared(row: Works, request: pytest.FixtureRequest) -> Prepared:
    if row.needs in ("te", "mxfp8"):
        request.getfixturevalue("transformer_engine")
    if row.needs == "mxfp8" and torch.cuda.get_device_capability() < (10, 0):
        pytest.skip(f"no MXFP8 on compute capability {torch.cuda.get_device_capability()}")
    if "muon" in row.flags:
        try:
            version("emerging-optimizers")
        except PackageNotFoundError:
            pytest.skip("needs the package emerging-optimizers")
    return Prepared(row, torch.cuda.device_count())


def rows(*kinds: str, beside_megatron: bool = False) -> Any:
    """The rows to run, of these kinds of comparison; einops alone needs no GPU."""
    return pytest.mark.parametrize(
        "row",
        [
            pytest.param(row, id=row.name)
            for row in works()
            if row.needs in ("cuda", "te", "mxfp8")
            and row.compare in kinds
            and (row.beside_megatron or not beside_megatron)
        ],
    )


@rows("neutral", "losses")
def test_a_neutral_switch_changes_nothing(row: Works, prepared: Prepared, runner: Runner) -> None:
    flags = [*MODEL, *prepared.layout]
    without = runner(prepared.ranks, flags)
    switched = runner(prepared.ranks, [*flags, *prepared.flags])
    assert_losses(switched, without, row.tolerance)
    if row.compare == "neutral":
        assert_gradients(switched, without, prepared.ranks, row.tolerance)


@rows("neutral", "math", beside_megatron=True)
def test_at_scale_0_it_is_megatrons_layer(row: Works, prepared: Prepared, runner: Runner) -> None:
    flags = [*prepared.layout, *prepared.flags]
    grove = runner(prepared.ranks, [*PLAIN_MODEL, *SCALE_0, *flags])
    stock = runner(prepared.ranks, [*PLAIN_MODEL, *without_grove(flags)])
    assert_losses(grove, stock, BESIDE_MEGATRON)


@rows("layout")
def test_from_the_same_weights_a_layout_trains_the_same(
    row: Works, prepared: Prepared, runner: Runner
) -> None:
    model = [*MODEL, *prepared.layout]
    save = ["--train-iters", "1", "--save", "{tmp}/start", "--save-interval", "1"]
    start = runner(1, [*model, *save, "--no-save-optim", "--no-save-rng"]).folder / "start"
    load = ["--load", str(start), "--finetune", "--no-load-optim", "--no-load-rng"]
    # TransformerEngine's experts have one empty state each, or one together.
    load += ["--dist-ckpt-strictness", "log_all"]
    together = runner(prepared.ranks, [*model, *load])
    split = runner(prepared.ranks, [*model, *load, *prepared.flags])
    assert_losses(split, together, row.tolerance)
    norms = [job.results()[-1]["grad_norms"] for job in (split, together)]
    assert norms[0] == pytest.approx(norms[1], rel=row.tolerance)


@rows("runs")
def test_it_runs(row: Works, prepared: Prepared, runner: Runner) -> None:
    job = runner(prepared.ranks, [*MODEL, *prepared.layout, *prepared.flags])
    assert all(torch.isfinite(torch.tensor([*step.values()])).all() for step in losses(job))
    for rank, result in enumerate(job.results()):
        for layer in result["layers"]:
            assert layer["rows"] == layer["sent"], (rank, layer)
