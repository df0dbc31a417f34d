"""--grove-train-only, before there is a model."""

import pytest

from grove_megatron.model.subsets import SUBSETS
from grove_megatron.training.subsets import subset_problems, trained_notice

from ..conftest import in_lines, parser
from .command_lines import parsed

subset_problems = in_lines(subset_problems)
# A model that has all of them.
EVERY = (
    "--moe-shared-expert-intermediate-size 16 --grove-constant-experts 2 --mtp-num-layers 1 "
    "--moe-layer-freq [0,1]"
)


@pytest.mark.parametrize(
    "chosen",
    [*SUBSETS, "adjugates router", r"layers\\.1\\..*adjugate", "linear_fc2", r"weight7$"],
)
def test_what_there_is_is_no_problem(chosen: str) -> None:
    args = parsed(f"{EVERY} --grove-train-only {chosen.replace(chr(92) * 2, chr(92))}")
    assert subset_problems(args, 1) == []


@pytest.mark.parametrize(
    ("chosen", "begins"),
    [
        ("adjugat3s", ["(adjugat3s) is in no weight of the model; use adjugates, experts, "]),
        ("adjugates,router", ["(adjugates,router) is in no weight of the model; use adj"]),
        ("( local", ["(() is no regular expression", "(local) is in no weight of the model"]),
        (r"layers\.9\.", [r"(layers\.9\.) is in no weight"]),
    ],
)
def test_what_is_not_there_is_named(chosen: str, begins: list[str]) -> None:
    found = subset_problems(parsed(f"--grove-train-only {chosen}"), 1)
    assert len(found) == len(begins)
    for line, begin in zip(found, begins, strict=True):
        assert line.startswith(f"--grove-train-only {begin}")


def test_of_a_model_that_the_planner_does_not_know_the_names_are_not_asked() -> None:
    args = parsed("--grove-train-only nothing --experimental-attention-variant gated_delta_net")
    assert subset_problems(args, 1) == []


RELEASED = "--grove-preset grovemoe-33b --seq-length 8 --micro-batch-size 1"


@pytest.mark.parametrize(
    ("chosen", "trained"),
    [
        # 48 layers of 64 adjugates of 3 x 2048 x 128.
        ("adjugates", "2,415,919,104"),
        # 48 x 128 x 2048 beside them.
        ("adjugates router", "2,428,502,016"),
        (r"layers\.(0|47)\..*adjugate", "100,663,296"),
        ("embedding", "622,329,856"),
        (".", "32,948,041,728"),
    ],
)
def test_what_is_trained_of_the_released_model(chosen: str, trained: str) -> None:
    args = parser().parse_args([*RELEASED.split(), "--grove-train-only", *chosen.split()])
    args.rank, args.world_size = 0, 1
    said = f"--grove-train-only ({chosen}): {trained} of 32,948,041,728 parameters"
    searched = [word for word in chosen.split() if word not in SUBSETS]
    if searched:
        said += f"; searched for in all names: {', '.join(searched)}"
    assert trained_notice(args) == said


def test_a_tied_embedding_is_counted_once() -> None:
    tied, apart = parsed("--grove-train-only embedding"), parsed("--grove-train-only embedding")
    apart.untie_embeddings_and_output_weights = True
    # 128 rows of 16, and 8 positions.
    assert "embedding): 2,176 of " in str(trained_notice(tied))
    tied.grove_train_only = ["output_layer"]
    assert subset_problems(tied, 1) == []
    assert "output_layer): 2,048 of " in str(trained_notice(tied))
    assert "embedding): 4,224 of " in str(trained_notice(apart))
    assert trained_notice(parsed()) is None


def test_mtp_layers_are_counted_with_what_is_in_them() -> None:
    once = parsed("--grove-train-only adjugates --position-embedding-type rope")
    with_mtp = parsed(
        "--grove-train-only adjugates --position-embedding-type rope --mtp-num-layers 1"
    )
    # 4 adjugates of 3 x 16 x 8 in a layer, of which there is one more.
    assert "adjugates): 3,072 of " in str(trained_notice(once))
    assert "adjugates): 4,608 of " in str(trained_notice(with_mtp))
