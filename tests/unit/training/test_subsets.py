"""--grove-train-only, before there is a model."""

import pytest

from grove_megatron.training.subsets import SUBSETS, subset_problems

from ..conftest import in_lines
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
