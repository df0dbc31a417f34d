"""A placement changes who holds an expert, and nothing that the layer computes or saves."""

from pathlib import Path
from typing import Any

import pytest

from tests.ranks import Ranks

CASES = "tests.multirank.placed_cases"
Found = dict[str, dict[str, Any]]

ONE: dict[str, int] = {}
EP2 = {"expert_model_parallel_size": 2}
EP4 = {"expert_model_parallel_size": 4}
SPLIT = EP2 | {"tensor_model_parallel_size": 2, "expert_tensor_parallel_size": 2}

# Groups of four, experts of eight.
SWAPPED, TURNED, MIXED = [2, 3, 0, 1], [1, 0, 3, 2], [3, 0, 2, 1]
EXPERTS = [5, 0, 3, 6, 1, 7, 2, 4]
MEGATRONS = {"grove_kernel": "megatron"}
PLAIN = {
    "grove_num_groups": 0,
    "grove_adjugate_ffn_hidden_size": None,
    "grove_adjugate_scale": 0.05,
    "grove_dispatch": True,
    "grove_router_scoring": "grove",
}


def variants(*orders: list[int]) -> dict[str, dict[str, Any]]:
    """In fp64, each with both storages of experts."""
    return {
        f"{order} {name}": {"order": order, "settings": settings}
        for order in orders
        for name, settings in (("grouped", {}), ("megatrons", MEGATRONS))
    }


def of_ranks(
    ranks: Ranks,
    folder: Path,
    sizes: dict[str, int],
    layers: dict[str, dict[str, Any]],
    *,
    nodes: bool = False,
) -> list[Found]:
    size = sizes.get("expert_model_parallel_size", 1) * sizes.get("tensor_model_parallel_size", 1)
    args = (str(folder), sizes, layers, nodes)
    job = ranks.run(size, f"{CASES}:agreement", *args, folder=folder)
    return job.check().results()


def assert_same(found: list[Found], most: float, *, moved: bool = True) -> None:
    for result in found:
        for name, one in result.items():
            assert one["same_names"], name
            assert one["same_names_of_parameters"], name
            assert one["smallest"] > 0, name
            assert len(one["differs"]) > 3, name
            assert max(one["differs"].values()) <= most, (name, one["differs"])
            assert one["moved"] == moved, name
            # Megatron's TEGroupedMLP alone has none here.
            assert one["same_entries"] is (True if one["entries"] else None), name


def test_the_same_sums_have_the_same_bits(ranks: Ranks, tmp_path: Path) -> None:
    """Two ranks change places: whatever is added is added in the same order, but for two terms."""
    layers = {name: one | {"fp64": False} for name, one in variants(SWAPPED).items()}
    assert_same(of_ranks(ranks, tmp_path, EP2, layers), 0.0)


def test_any_order_inside_a_rank_is_the_order(ranks: Ranks, tmp_path: Path) -> None:
    layers = {name: one | {"fp64": False} for name, one in variants(TURNED).items()}
    assert_same(of_ranks(ranks, tmp_path, EP2, layers), 0.0, moved=False)


@pytest.mark.parametrize(
    ("sizes", "layers"),
    [
        pytest.param(
            EP2,
            {
                **variants(MIXED),
                "experts": {"order": EXPERTS, "settings": PLAIN},
                "all-gather": {
                    "order": MIXED,
                    "settings": {"moe_token_dispatcher_type": "allgather"},
                },
                "at once": {"order": MIXED, "at_once": True},
                "grouped mlp": {"order": MIXED, "grouped": True},
            },
            id="ep2",
        ),
        pytest.param(ONE, variants(MIXED), id="one", marks=pytest.mark.long),
        pytest.param(EP4, variants(MIXED, SWAPPED), id="ep4", marks=pytest.mark.long),
        pytest.param(SPLIT, variants(MIXED), id="ep2-tp2-etp2", marks=pytest.mark.long),
    ],
)
def test_other_orders_differ_by_rounding(
    sizes: dict[str, int], layers: dict[str, Any], ranks: Ranks, tmp_path: Path
) -> None:
    found = of_ranks(ranks, tmp_path, sizes, layers)
    assert_same(found, 1e-12, moved=sizes != ONE)


def test_two_hops_between_nodes(ranks: Ranks, tmp_path: Path) -> None:
    """With group j on rank 3 - j, and with groups of two nodes mixed."""
    settings = {"grove_hierarchical_dispatch": True}
    layers = {str(o): {"order": o, "settings": settings} for o in ([3, 2, 1, 0], MIXED)}
    found = of_ranks(ranks, tmp_path, EP4, layers, nodes=True)
    assert_same(found, 1e-12)
    # The same nodes have the same groups, so as much crosses between them; not so mixed.
    turned, mixed = (
        [sum(r[str(o)]["traffic"][i]["node_rows"] for r in found) for i in (0, 1)]
        for o in ([3, 2, 1, 0], MIXED)
    )
    assert turned[0] == turned[1] > 0
    assert mixed[0] != mixed[1]


def test_a_moved_layer_keeps_its_number(ranks: Ranks, tmp_path: Path) -> None:
    job = ranks.run(2, f"{CASES}:renumbered", str(tmp_path), folder=tmp_path)
    for said in job.check().results():
        assert said.startswith("layer_number (2) is given to a layer that grove_placement (")
        assert said.endswith(") has moved as layer (1); give its number once")
