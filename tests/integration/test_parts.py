"""Every part of the router, in real training: its oracle, and every layout from one checkpoint."""

import pytest

from grove_megatron.parts import registry
from grove_megatron.parts.part import Part
from tests.integration.flags import MODEL
from tests.integration.switch_runs import THREE, Runner, assert_gradients, assert_losses
from tests.ranks import Ranks

# Run in every test run, the others in the whole matrix.
SHORT = {"norm", "load"}


@pytest.fixture(scope="module")
def runner(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(ranks, tmp_path_factory)


def cases(parts: tuple[Part, ...]) -> list[object]:
    marks = {part.name: [] if part.name in SHORT else [pytest.mark.long] for part in parts}
    return [pytest.param(p, id=f"{p.slot}-{p.name}", marks=marks[p.name]) for p in parts]


def flags_of(part: Part) -> list[str]:
    """Of a model with the part, in which it matters."""
    return [*MODEL, *THREE, *part.tried.split()]


@pytest.mark.parametrize(
    "part", cases(tuple(p for p in registry.parts() if p.slot not in ("update", "schedule")))
)
def test_a_part_trains_as_its_reference_does(part: Part, runner: Runner) -> None:
    flags = flags_of(part)
    fast, slow = runner(1, flags), runner(1, flags, how="train_by_the_references")
    assert_losses(fast, slow, 1e-5)
    # The last step, after which three of Adam have made of equal gradients nearly equal weights.
    assert_gradients(fast, slow, 1, 1e-5, grown=30)


@pytest.mark.parametrize("part", cases(registry.parts()))
def test_every_layout_goes_on_alike_from_one_checkpoint(part: Part, runner: Runner) -> None:
    model = flags_of(part)
    save = ["--train-iters", "1", "--save", "{tmp}/start", "--save-interval", "1"]
    start = runner(1, [*model, *save, "--no-save-optim", "--no-save-rng"]).folder / "start"
    load = ["--load", str(start), "--finetune", "--no-load-optim", "--no-load-rng"]
    alone = runner(4, [*model, *load])
    layouts = ["--expert-model-parallel-size 4"]
    if not part.draws:
        layouts.append("--expert-model-parallel-size 2 --pipeline-model-parallel-size 2")
    for layout in layouts:
        other = runner(4, [*model, *load, *layout.split()])
        assert_losses(other, alone, 1e-5)
        norms = [job.results()[-1]["grad_norms"] for job in (other, alone)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
