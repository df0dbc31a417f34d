"""Groups as Megatron makes them, and what crosses between nodes."""

from itertools import combinations

import pytest

from grove_megatron.machines.borders import (
    ORDER,
    ORDER_PIPELINE_FIRST,
    borders,
    groups_of,
    placement_notes,
    rows_abroad,
)
from grove_megatron.model.architecture import Model
from grove_megatron.planner.inputs import Layout

LAYOUTS = [
    Layout(world=8, expert=4),
    Layout(world=16, tensor=2, expert_tensor=2, expert=4, pipeline=2),
    Layout(world=16, tensor=2, expert_tensor=1, expert=8, context=2),
    Layout(world=32, tensor=4, expert_tensor=2, expert=2, pipeline=2, context=2),
    Layout(world=24, pipeline=3, expert=8),
]


@pytest.mark.parametrize("order", [ORDER, ORDER_PIPELINE_FIRST])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_are_megatrons(layout: Layout, order: str) -> None:
    from megatron.core.parallel_state import RankGenerator

    common = {"pp": layout.pipeline, "order": order}
    dense = RankGenerator(tp=layout.tensor, ep=1, dp=layout.data, cp=layout.context, **common)
    etp, ep, copies = layout.expert_tensor, layout.expert, layout.expert_copies
    expert = RankGenerator(tp=etp, ep=ep, dp=copies, cp=1, **common)
    assert groups_of(layout, order) == {
        "TP": dense.get_ranks("tp"),
        "CP": dense.get_ranks("cp"),
        "PP": dense.get_ranks("pp"),
        "EP": expert.get_ranks("ep"),
        "ETP": expert.get_ranks("tp"),
    }


def nodes(world: int, per_node: int) -> list[str]:
    return [str(rank // per_node) for rank in range(world)]


def test_borders_are_counted() -> None:
    layout = Layout(world=16, tensor=2, expert_tensor=1, expert=8, pipeline=2)
    found = {one.kind: one for one in borders(groups_of(layout), nodes(16, 4))}
    # Two groups of 8 in a row, on nodes of 4; stages are 8 apart; tensor pairs are neighbours.
    assert (found["EP"].count, found["EP"].crossing, found["EP"].most) == (2, 2, 2)
    assert (found["TP"].count, found["TP"].crossing, found["TP"].most) == (8, 0, 1)
    assert (found["PP"].size, found["PP"].crossing, found["PP"].most) == (2, 8, 2)
    assert found.keys() == {"EP", "TP", "PP"}


def model(experts: int, topk: int) -> Model:
    return Model(
        hidden_size=8,
        head_dim=4,
        num_attention_heads=2,
        num_query_groups=2,
        vocab_size=8,
        moe_layers=(True,),
        ffn_hidden_size=8,
        num_experts=experts,
        moe_ffn_hidden_size=8,
        topk=topk,
    )


@pytest.mark.parametrize("held", [["a", "a", "b", "b"], ["a", "b", "c", "d"], ["a"] * 3 + ["b"]])
def test_rows_are_those_of_every_choice(held: list[str]) -> None:
    """All choices of 3 of 8 experts, two on each of four ranks, from every rank, one by one."""
    rows: list[int] = []
    by_node: list[int] = []
    for chosen in combinations(range(8), 3):
        ranks = {expert // 2 for expert in chosen}
        for source in range(4):
            away = [rank for rank in ranks if held[rank] != held[source]]
            rows.append(len(away))
            by_node.append(len({held[rank] for rank in away}))
    found = rows_abroad(model(8, 3), Layout(world=4, expert=4), held)
    assert found.flat == pytest.approx(sum(rows) / len(rows))
    if held.count("a") == 3:
        assert found.by_node is None
    else:
        assert found.by_node == pytest.approx(sum(by_node) / len(by_node))


def test_nodes_that_take_turns_send_no_row_by_node() -> None:
    found = rows_abroad(model(8, 3), Layout(world=4, expert=4), ["a", "b", "a", "b"])
    assert found.by_node is None


@pytest.mark.parametrize(
    ("layout", "node_of", "words"),
    [
        (Layout(world=8, expert=4), nodes(8, 4), []),
        (Layout(world=8, expert=8), nodes(8, 4), []),  # it could not lie inside
        (Layout(world=8, expert=4), [*"01" * 4], ["node 0, 1 are not contiguous"]),
        (Layout(world=12, expert=4), nodes(12, 6), ["would fit into the ranks of a node (6)"]),
        (
            Layout(world=8, expert=4, tensor=2, expert_tensor=2),
            nodes(8, 4),
            ["with --expert-tensor-parallel-size 1 they would lie inside"],
        ),
    ],
)
def test_what_could_be_better_placed(layout: Layout, node_of: list[str], words: list[str]) -> None:
    notes = placement_notes(layout, groups_of(layout), node_of)
    assert len(notes) == len(words)
    for note, said in zip(notes, words, strict=True):
        assert said in note
