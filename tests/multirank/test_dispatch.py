"""The real layer on gloo ranks equals the reference, forward and every gradient."""

from pathlib import Path

import pytest

from tests.ranks import Ranks

SIZES = {
    "ep1": (1, {}),
    "ep2": (2, {"expert_model_parallel_size": 2}),
    "ep4": (4, {"expert_model_parallel_size": 4}),
    "dp2-ep2": (4, {"expert_model_parallel_size": 2}),
    "tp2-etp2-ep2": (
        4,
        {
            "tensor_model_parallel_size": 2,
            "expert_tensor_parallel_size": 2,
            "expert_model_parallel_size": 2,
        },
    ),
    "ep4-on-two-nodes": (4, {"expert_model_parallel_size": 4}, 2),
    "etp2-ep4-on-two-nodes": (
        8,
        {
            "tensor_model_parallel_size": 2,
            "expert_tensor_parallel_size": 2,
            "expert_model_parallel_size": 4,
        },
        4,
    ),
}


# One layout in every run; the others with the whole matrix.
LAYOUTS = [pytest.param(name, marks=[] if name == "ep2" else [pytest.mark.long]) for name in SIZES]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_routings_equal_the_reference(layout: str, ranks: Ranks, tmp_path: Path) -> None:
    world_size, *sizes = SIZES[layout]
    # The same work for every core of a small machine.
    cases = {1: 100, 2: 100, 4: 40, 8: 15}[world_size]
    job = ranks.run(
        world_size,
        "tests.multirank.dispatch_cases:property_test",
        str(tmp_path),
        cases,
        *sizes,
        folder=tmp_path,
    )
    result = job.check().results()[0]
    assert result["failure"] is None
    assert result["ran"] >= cases


@pytest.mark.parametrize(
    ("layout", "cases"),
    [
        pytest.param("ep1", 140, marks=pytest.mark.long),
        ("ep2", 100),
        pytest.param("ep4", 40, marks=pytest.mark.long),
        pytest.param("dp2-ep2", 20, marks=pytest.mark.long),
    ],
)
def test_random_layers_of_moe_plus_plus_equal_the_equations(
    layout: str, cases: int, ranks: Ranks, tmp_path: Path
) -> None:
    world_size, *sizes = SIZES[layout]
    target = "tests.multirank.local_cases:property_test"
    job = ranks.run(world_size, target, str(tmp_path), cases, *sizes, folder=tmp_path)
    result = job.check().results()[0]
    assert result["failure"] is None
    assert result["ran"] >= cases
