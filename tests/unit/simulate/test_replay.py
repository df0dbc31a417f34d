import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grove_megatron.planner.traffic import expected_distinct
from grove_megatron.simulate import replay as replaying
from grove_megatron.simulate.flow import Flow
from grove_megatron.simulate.replay import Replay, replay
from grove_megatron.simulate.routing import uniform
from grove_megatron.simulate.sizes import Sizes

from .by_hand import Listed, Moved, by_hand


@st.composite
def cases(draw: st.DrawFn) -> tuple[Sizes, Listed, list[int] | None]:
    """Sizes, tokens of every rank with any number of experts, and an order of groups or none."""
    per_node, nodes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    ranks = per_node * nodes
    units, size = ranks * draw(st.integers(1, 2)), draw(st.integers(1, 2))
    experts = units * size
    topk = draw(st.integers(1, min(4, experts)))
    sizes = Sizes(
        experts=experts,
        groups=draw(st.sampled_from((units, 0))),
        topk=topk,
        ranks=ranks,
        gpus_per_node=per_node,
        tokens=2,
        row_bytes=8,
    )
    chosen = st.lists(st.integers(0, experts - 1), max_size=topk, unique=True)
    tokens = [draw(st.lists(chosen, max_size=4)) for _ in range(ranks)]
    order = None
    if draw(st.booleans()):
        groups = draw(st.permutations(range(units)))
        order = [unit * size + i for unit in groups for i in range(size)]
    return sizes, Listed(tokens, topk), order


def assert_is(flow: Flow, moved: Moved, sizes: Sizes, *, pairs: bool = True) -> None:
    assert flow.sent_rows.tolist() == moved.by_distance(sizes, 0, "rows")
    assert flow.received_rows.tolist() == moved.by_distance(sizes, 1, "rows")
    if pairs:
        assert flow.sent_pairs.tolist() == moved.by_distance(sizes, 0, "pairs")
        assert flow.received_pairs.tolist() == moved.by_distance(sizes, 1, "pairs")


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_everything_is_as_counted_by_hand(case: tuple[Sizes, Listed, list[int] | None]) -> None:
    sizes, routing, order = case
    found = replay(routing, sizes, "1", 0, order)
    expected = by_hand(routing, sizes, order)
    assert_is(found.flat, expected["flat"], sizes)
    assert_is(found.stock, expected["stock"], sizes)
    assert (found.two_hops is None) == (sizes.nodes == 1 or sizes.per_node == 1)
    if found.two_hops is not None:
        assert_is(found.two_hops, expected["two_hops"], sizes)
    assert found.node_rows == expected["node_rows"]
    assert found.pairs.tolist() == expected["pairs"]
    assert found.adjugate_pairs.tolist() == expected["adjugate_pairs"]
    counts = [len(tokens) for tokens in routing.tokens]
    assert found.tokens.tolist() == counts
    everywhere = Moved()
    for source, count in enumerate(counts):
        for rank in range(sizes.ranks):
            everywhere.rows[source, rank] += count
    assert_is(found.all_gather, everywhere, sizes, pairs=False)
    # The plans of all ranks were made, and came to the same.
    assert found.planned == sizes.ranks


@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_sums_agree_and_sharing_never_costs(case: tuple[Sizes, Listed, list[int] | None]) -> None:
    sizes, routing, order = case
    found = replay(routing, sizes, "1", 0, order)
    for flow in (found.flat, found.stock, found.all_gather, *filter(None, [found.two_hops])):
        # What is sent somewhere comes from somewhere, at every distance.
        assert flow.sent_rows.sum(0).tolist() == flow.received_rows.sum(0).tolist()
        assert flow.sent_pairs.sum(0).tolist() == flow.received_pairs.sum(0).tolist()
    assert (found.flat.sent_rows <= found.stock.sent_rows).all()
    assert (found.flat.sent_rows <= found.all_gather.sent_rows).all()
    assert found.pairs.sum() == found.stock.sent_rows.sum()
    if found.two_hops is not None:
        across = [flow.sent_rows[:, 2].sum() for flow in (found.two_hops, found.flat, found.stock)]
        assert across == sorted(across)


SIXTEEN = Sizes(experts=32, groups=16, topk=4, ranks=16, gpus_per_node=4, tokens=40, row_bytes=2)


def test_pieces_and_plans_of_a_part_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    routing = uniform(SIXTEEN, 0)
    whole = replay(routing, SIXTEEN, "1", 0)
    # Tokens of a rank by sevens, three of those pieces at a time; plans until they are too many.
    monkeypatch.setattr(replaying, "_MAP", 7 * 32)
    monkeypatch.setattr(replaying, "_MAPS", 2 * 7 * 32)
    monkeypatch.setattr(replaying, "_PLANNED", 300 * 32)
    monkeypatch.setattr(replaying, "_PER_RANK", 1)
    parts = replay(routing, SIXTEEN, "1", 0)
    assert whole.planned == 16 > parts.planned > 4
    assert same(whole, parts)
    monkeypatch.setattr(replaying, "_WORK", 3 * 16)
    assert same(whole, replay(routing, SIXTEEN, "1", 0))


def test_a_plan_that_sends_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    routing = uniform(SIXTEEN, 0)
    land = replaying.land

    def one_row_more(*args: object) -> tuple[int, int, int]:
        rows, pairs, adjugate_pairs = land(*args)  # type: ignore[arg-type]
        return rows + 1, pairs, adjugate_pairs

    monkeypatch.setattr(replaying, "land", one_row_more)
    with pytest.raises(AssertionError, match="plans are not what counts"):
        replay(routing, SIXTEEN, "1", 0)


def same(a: Replay, b: Replay) -> bool:
    assert a.two_hops is not None
    assert b.two_hops is not None
    pairs = [(a.flat, b.flat), (a.two_hops, b.two_hops)]
    flows = all(
        torch.equal(x, y)
        for one, other in pairs
        for x, y in zip(vars(one).values(), vars(other).values(), strict=True)
    )
    return (
        flows
        and a.node_rows == b.node_rows
        and torch.equal(a.pairs, b.pairs)
        and torch.equal(a.adjugate_pairs, b.adjugate_pairs)
    )


@pytest.mark.parametrize(
    ("ranks", "rows"), [(2, 1.99), (4, 3.63), (8, 5.34), (16, 6.60), (32, 7.36), (64, 7.78)]
)
def test_rows_of_top_8_of_128_are_those_of_the_planner(ranks: int, rows: float) -> None:
    sizes = Sizes(experts=128, groups=64, topk=8, ranks=ranks, tokens=8192 // ranks, row_bytes=4096)
    found = replay(uniform(sizes, 0), sizes, "1", 0)
    tokens = int(found.tokens.sum())
    per_token = int(found.flat.sent_rows.sum()) / tokens
    assert per_token == pytest.approx(rows, rel=0.01)
    assert per_token == pytest.approx(expected_distinct(128, 8, ranks), rel=0.01)
    to_nodes = expected_distinct(128, 8, sizes.nodes)
    assert found.node_rows / tokens == pytest.approx(to_nodes, rel=0.01)
    assert int(found.adjugate_pairs.sum()) / tokens == pytest.approx(7.78, rel=0.01)


@pytest.mark.long
def test_thousands_of_ranks_are_counted() -> None:
    sizes = Sizes(experts=4096, topk=8, ranks=4096, tokens=16, row_bytes=4096)
    found = replay(uniform(sizes, 0), sizes, "1", 0)
    # Plans of all would take a minute.
    assert found.planned == 1024
    tokens = 4096 * 16
    assert int(found.flat.sent_rows.sum()) == 8 * tokens
    assert found.node_rows / tokens == pytest.approx(expected_distinct(4096, 8, 512), rel=0.001)
