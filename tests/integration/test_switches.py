"""Every row of grove_megatron.switches that works computes what it should.

What the others refuse is in tests/unit/test_switches.py.
"""

import shlex
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from grove_megatron.switches import Works, works
from tests.integration.flags import MODEL, PLAIN_MODEL
from tests.integration.switch_runs import (
    SCALE_0,
    THREE,
    Runner,
    assert_gradients,
    assert_losses,
    assert_similar_gradients,
    losses,
    without_grove,
)
from tests.ranks import Ranks

# Run in every test run, the others in the whole matrix.
SHORT = {"allgather", "recompute-moe"}


@pytest.fixture(scope="module")
def runner(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(ranks, tmp_path_factory)


def cases(rows: list[Works]) -> list[Any]:
    return [
        pytest.param(row, id=row.name, marks=[] if row.name in SHORT else [pytest.mark.long])
        for row in rows
        if not row.needs or (row.needs == "einops" and find_spec("einops"))
    ]


@pytest.mark.parametrize("row", cases([r for r in works() if r.compare in ("neutral", "losses")]))
def test_a_neutral_switch_changes_nothing(row: Works, runner: Runner) -> None:
    layout = [*MODEL, *THREE, *shlex.split(row.layout)]
    without, switched = runner(row.ranks, layout), runner(row.ranks, layout + row.flags.split())
    assert_losses(switched, without, row.tolerance)
    if row.compare == "neutral":
        # On some processors a norm that runs again does not give the same bits.
        assert_gradients(switched, without, row.ranks, row.tolerance, grown=10)
    else:
        assert_similar_gradients(switched, without, row.ranks)


@pytest.mark.parametrize(
    "row",
    # A neutral switch changes nothing (above), so nothing of what its layout is compared with.
    cases([r for r in works() if r.beside_megatron and r.compare != "neutral"]),
)
def test_at_scale_0_it_is_megatrons_layer(row: Works, runner: Runner) -> None:
    flags = [*THREE, *row.layout.split(), *row.flags.split()]
    grove = runner(row.ranks, [*PLAIN_MODEL, *SCALE_0, *flags])
    # Without TransformerEngine Megatron has no norm for sequence parallelism and no core of latent
    # attention, our spec has.
    spec = "--spec grove_megatron.layer_spec grove_layer_spec".split()
    needs_ours = {"--sequence-parallel", "--multi-latent-attention"} & {*flags}
    stock = runner(row.ranks, [*PLAIN_MODEL, *(spec if needs_ours else []), *without_grove(flags)])
    assert_losses(grove, stock, max(1e-6, row.tolerance / 10))
    # Sums in another order, and three steps of Adam on them, which divides by a gradient's size.
    assert_gradients(grove, stock, row.ranks, row.tolerance, grown=10)


@pytest.mark.parametrize(
    "row",
    # Where all experts are on the rank.
    cases([r for r in works() if r.compare == "math" and "expert-model" not in r.layout]),
)
def test_other_math_is_that_of_the_equation(row: Works, runner: Runner) -> None:
    flags = [*MODEL, *THREE, *row.layout.split(), *row.flags.split()]
    layer = runner(row.ranks, flags)
    by_hand = [*flags, "--grove-kernel", "megatron"]
    equation = runner(row.ranks, by_hand, how="train_by_the_equation")
    assert_losses(layer, equation, row.tolerance)
    assert_gradients(layer, equation, row.ranks, row.tolerance, grown=10)


@pytest.mark.parametrize("row", cases([r for r in works() if r.compare == "layout"]))
def test_a_layout_trains_as_data_parallelism_does(row: Works, runner: Runner) -> None:
    model = [*MODEL, *THREE, *row.layout.split()]
    save = ["--train-iters", "1", "--save", "{tmp}/start", "--save-interval", "1"]
    start = runner(1, [*model, *save, "--no-save-optim", "--no-save-rng"]).folder / "start"
    load = ["--load", str(start), "--finetune", "--no-load-optim", "--no-load-rng"]
    together, split = (runner(row.ranks, [*model, *load, *f.split()]) for f in ("", row.flags))
    assert_losses(split, together, row.tolerance)
    norms = [job.results()[-1]["grad_norms"] for job in (split, together)]
    assert norms[0] == pytest.approx(norms[1], rel=row.tolerance)


@pytest.mark.parametrize("row", cases([r for r in works() if r.compare == "runs"]))
def test_it_runs(row: Works, runner: Runner) -> None:
    flags = [*MODEL, *THREE, *row.layout.split(), *row.flags.split()]
    job = runner(row.ranks, flags, row.simulated)
    if not row.simulated:
        assert all(torch.isfinite(torch.tensor([*step.values()])).all() for step in losses(job))
    for rank, result in enumerate(job.results()):
        for layer in result["layers"]:
            assert layer["rows"] == layer["sent"], (rank, layer)
