"""A checkpoint with weights that the model has no place for is refused, at any layout."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.flags import MODEL
from tests.ranks import Ranks

ONE_STEP = ["--train-iters", "1", "--lr-decay-iters", "1"]
BIAS = "--moe-router-enable-expert-bias"
PP2 = ["--pipeline-model-parallel-size", "2"]


@pytest.fixture(scope="module")
def with_bias(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one iteration with an expert bias."""
    folder = tmp_path_factory.mktemp("saved")
    save = ["--save", str(folder / "ckpt"), "--save-interval", "1"]
    train(ranks, folder, 1, BIAS, *save).check()
    return folder / "ckpt"


def train(ranks: Ranks, folder: Path, world_size: int, *flags: str) -> Any:
    argv = [*MODEL, *ONE_STEP, *flags]
    target = "tests.integration.recorded_run:train"
    return ranks.run(world_size, target, str(folder), argv, folder=folder)


@pytest.mark.parametrize("pretrained", [False, True])
def test_weights_that_would_be_dropped_are_refused_by_name(
    pretrained: bool, ranks: Ranks, with_bias: Path, tmp_path: Path
) -> None:
    load = ["--load", str(with_bias), "--finetune", *PP2]
    if pretrained:
        # The first start of a run that goes on from its own checkpoints afterwards.
        load = ["--pretrained-checkpoint", str(with_bias), "--load", str(tmp_path / "own"), *PP2]
    job = train(ranks, tmp_path, 2, *load)
    assert job.codes == [2, 2]
    assert (
        "has weights (decoder.layers.mlp.router.expert_bias) that the model of these flags does "
        "not; give the flags it was trained with, or --dist-ckpt-strictness ignore_all to go on "
        "without them"
    ) in job.log()


@pytest.mark.parametrize("on_purpose", [[BIAS], ["--dist-ckpt-strictness", "log_all"]])
def test_with_their_flags_or_on_purpose_it_goes_on(
    on_purpose: list[str], ranks: Ranks, with_bias: Path, tmp_path: Path
) -> None:
    # Every stage has its own layers alone.
    load = ["--load", str(with_bias), "--finetune", *PP2]
    train(ranks, tmp_path, 2, *load, *on_purpose).check()
