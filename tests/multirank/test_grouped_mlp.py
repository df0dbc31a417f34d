"""With Megatron's TEGroupedMLP as experts and adjugates a layer is the same layer.

Its linear layers stand for TransformerEngine's (grouped_linear.py); the rest is Megatron's.
"""

from pathlib import Path

import pytest

from tests.ranks import Ranks

CASES = "tests.multirank.grouped_mlp_cases"
EXPERTS = [
    f"{k}.linear_{fc}.weight" for k in ("experts", "adjugate_experts") for fc in ("fc1", "fc2")
]


# In every test run each switch once, the rank without rows with those that it could break.
SHORT = [("moe_act", True), ("layernorm", True), ("delayed", False)]
LONG = [("plain", False), ("plain", True), ("moe_act", False), ("layernorm", False)]
LONG.append(("delayed", True))


@pytest.mark.parametrize(
    ("switch", "empty"),
    [*SHORT, *(pytest.param(*case, marks=pytest.mark.long) for case in LONG)],
)
def test_outputs_and_all_gradients_are_those_of_our_experts(
    switch: str, empty: bool, ranks: Ranks, tmp_path: Path
) -> None:
    job = ranks.run(2, f"{CASES}:computes", str(tmp_path), switch, empty, folder=tmp_path)
    results = job.check().results()
    for result in results:
        assert result["kinds"] == ["TEGroupedMLP"] * 2
        assert {*EXPERTS, "router.weight", "x", "norm"} <= result["worst"].keys()
        # The same products in fp32, summed in another order.
        assert max(result["worst"].values()) < 1e-5, result["worst"]
    assert [result["rows"] == 0 for result in results] == [False, empty]


def test_delayed_gradients_are_asked_of_experts_and_adjugates(ranks: Ranks, tmp_path: Path) -> None:
    job = ranks.run(2, f"{CASES}:order", str(tmp_path), folder=tmp_path)
    routed = ["experts", "adjugate_experts"]
    for calls in job.check().results():
        assert calls[:3] == [*routed, "shared_experts"]
        assert sorted(calls[3:]) == sorted([*routed, "shared_experts"])
