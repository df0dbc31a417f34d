"""What a page says that sharing saves, beside what every selection of experts gives."""

from dataclasses import replace
from itertools import combinations

import pytest

from grove_megatron.planner.flops import flops_per_token
from grove_megatron.planner.inputs import Layout
from grove_megatron.planner.pages.sharing import dispatches, groupings
from grove_megatron.planner.speed.step import step

from ..models import GROVE_33B, QWEN3_30B
from .plans import CLUSTER, plan

SMALL = replace(QWEN3_30B, num_experts=8, topk=3)
TWO_A_NODE = replace(CLUSTER, machine=replace(CLUSTER.machine, domain=2))


def sent(ranks: int, per_node: int, way: str) -> tuple[float, float]:
    """Rows of a token of SMALL, and those to other nodes: every selection, every rank it is on."""
    rows, far, times = 0, 0, 0
    for chosen in combinations(range(SMALL.num_experts), SMALL.topk):
        to = [expert * ranks // SMALL.num_experts for expert in chosen]
        for own in range(ranks):
            targets = to if way == "stock" else sorted(set(to))
            abroad = [rank // per_node for rank in targets if rank // per_node != own // per_node]
            rows += len(targets)
            far += len(set(abroad)) if way == "hierarchical" else len(abroad)
            times += 1
    return rows / times, far / times


def test_rows_are_those_of_all_selections() -> None:
    found = dispatches(plan(SMALL).sizes, TWO_A_NODE)
    assert [(one.ranks, one.way) for one in found] == [
        (ranks, way)
        for ranks in (1, 2, 4, 8)
        for way in ("stock", "flat", "hierarchical")[: 3 if ranks > 2 else 2]
    ]
    for one in found:
        # Quotients of small integers.
        assert (one.rows, one.far) == pytest.approx(sent(one.ranks, 2, one.way), rel=1e-12)


def test_seconds_are_bytes_over_the_slower_link() -> None:
    sizes = plan(GROVE_33B, tensor=2, pipeline=2, expert=8).sizes
    found = {(one.ranks, one.way): one for one in dispatches(sizes, CLUSTER)}
    assert found[1, "flat"].seconds == 0
    # Bytes of a token's row, out and back, forward and backward, in half of 48 layers on a stage,
    # of the half of 4096 tokens that a rank of two has, in 8 microbatches of 16 replicas.
    crossing = 4 * 2 * 2048 * 24 * 2048 * 8
    stock, flat = found[8, "stock"], found[8, "flat"]
    assert stock.seconds == pytest.approx(crossing * 8 * 7 / 8 / 4e11)
    assert flat.seconds == pytest.approx(crossing * flat.rows * 7 / 8 / 4e11)
    flat = found[32, "flat"]
    assert flat.far == pytest.approx(flat.rows * 24 / 32)
    assert flat.seconds == pytest.approx(crossing * flat.far / 5e10)


@pytest.mark.parametrize("way", ["stock", "flat", "hierarchical"])
@pytest.mark.parametrize("expert", [8, 16])
def test_the_layouts_own_seconds_are_those_of_its_plan(expert: int, way: str) -> None:
    ways = {"row_per_expert": way == "stock", "hierarchical": way == "hierarchical"}
    sizes = plan(GROVE_33B, expert=expert, pipeline=2, **ways).sizes
    # There is one node, and one way less.
    known = "flat" if (expert, way) == (8, "hierarchical") else way
    (own,) = (
        one.seconds for one in dispatches(sizes, CLUSTER) if (one.ranks, one.way) == (expert, known)
    )
    assert own == pytest.approx(step(sizes, CLUSTER).seconds["dispatch"])


def test_sizes_divide_experts_and_groups_and_are_no_more_than_there_are_ranks() -> None:
    def sizes_of(model, **layout):
        found = dispatches(plan(model, **layout).sizes, CLUSTER)
        return sorted({one.ranks for one in found})

    assert sizes_of(GROVE_33B) == [1, 2, 4, 8, 16, 32, 64]
    assert sizes_of(QWEN3_30B, pipeline=4) == [1, 2, 4, 8, 16]
    sixty = replace(QWEN3_30B, num_experts=60, topk=4)
    assert sizes_of(sixty) == [1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60]
    eight_groups = replace(GROVE_33B, num_groups=8)
    assert sizes_of(eight_groups) == [1, 2, 4, 8]
    # 24 fills three nodes, 12 one and a half.
    forty_eight = replace(QWEN3_30B, num_experts=48)
    found = dispatches(plan(forty_eight).sizes, CLUSTER)
    assert {one.ranks for one in found if one.way == "hierarchical"} == {16, 24, 48}


def test_nothing_else_of_the_layout_is_needed_to_divide() -> None:
    # 64 ranks of 4 x 4 x 1 have no group of 64, and its size is shown all the same.
    sizes = plan(GROVE_33B, expert=2).sizes
    etp = replace(sizes, layout=Layout(world=64, expert=2, expert_tensor=4, tensor=4))
    assert [one.ranks for one in dispatches(etp, CLUSTER)][-1] == 64


def test_a_dense_model_sends_nothing_and_has_no_groups() -> None:
    dense = replace(
        QWEN3_30B, moe_layers=(False,) * 48, num_experts=0, topk=0, ffn_hidden_size=6144
    )
    assert dispatches(plan(dense).sizes, CLUSTER) == []
    assert groupings(dense, 4096) == []


def test_groupings_meet_what_all_selections_meet() -> None:
    model = replace(SMALL, num_groups=4, adjugate_ffn_hidden_size=64)
    found = groupings(model, 128)
    assert [(one.groups, one.width) for one in found] == [(1, 256), (2, 128), (4, 64), (8, 32)]
    choices = [*combinations(range(8), 3)]
    for one in found:
        met = [len({expert * one.groups // 8 for expert in chosen}) for chosen in choices]
        assert one.met == pytest.approx(sum(met) / len(met), rel=1e-12)


def test_operations_of_adjugates_are_those_of_the_models_with_such_groups() -> None:
    for one in groupings(GROVE_33B, 4096):
        # All adjugates together stay as they are: 64 of width 128.
        model = replace(
            GROVE_33B, num_groups=one.groups, adjugate_ffn_hidden_size=8192 // one.groups
        )
        others = flops_per_token(model, 4096, groups=0.0)
        assert one.share == pytest.approx(flops_per_token(model, 4096) / others - 1)
        of_every_expert = flops_per_token(model, 4096, groups=8.0)
        assert one.share_per_expert == pytest.approx(of_every_expert / others - 1)
    first, *_, last = groupings(GROVE_33B, 4096)
    assert first.share_per_expert == pytest.approx(8 * first.share)
    assert last.share_per_expert == pytest.approx(last.share)


def test_groups_that_a_plain_model_could_have_cost_nothing() -> None:
    found = groupings(QWEN3_30B, 4096)
    assert [one.met for one in found] == [one.met for one in groupings(GROVE_33B, 4096)]
    assert {(one.width, one.share) for one in found} == {(0, 0)}
