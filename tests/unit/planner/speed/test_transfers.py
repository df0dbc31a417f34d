import pytest

from grove_megatron.planner.speed.cluster import Link
from grove_megatron.planner.speed.transfers import (
    Group,
    all_reduce,
    all_to_all,
    collective,
    fused,
    point_to_point,
    two_hops,
)

from .machines_here import ROUND, cluster

NEAR, FAR = ROUND.near.rate, ROUND.far.rate


def test_a_ring_in_a_node_sends_all_parts_but_its_own():
    taken = collective(cluster(), "all_gather", 8e9, Group(size=8))
    assert taken == pytest.approx(7e9 / NEAR)
    assert all_reduce(cluster(), 8e9, Group(size=8)) == pytest.approx(2 * taken)


@pytest.mark.parametrize(("stride", "cards"), [(1, 8), (2, 4), (8, 1), (16, 1)])
def test_a_ring_over_nodes_has_as_many_cards_as_ranks_in_a_node(stride, cards):
    group = Group(size=16, stride=stride)
    taken = collective(cluster(nodes=32), "all_gather", 16e9, group)
    assert taken == pytest.approx(15e9 / min(FAR * cards, NEAR))


def test_one_rank_exchanges_nothing():
    assert collective(cluster(), "all_gather", 8e9, Group(size=1)) == 0
    assert all_reduce(cluster(), 8e9, Group(size=1)) == 0


def test_all_to_all_sends_near_and_far_at_once_and_two_hops_one_after_the_other():
    group, nodes = Group(size=16), cluster(nodes=2)
    near, far = 4e9 / NEAR, 1e9 / FAR
    assert all_to_all(nodes, 4e9, 1e9, group) == pytest.approx(max(near, far))
    assert fused(nodes, 4e9, 1e9, group) == pytest.approx(max(near, far))
    assert two_hops(nodes, 4e9, 1e9, group) == pytest.approx(near + far)


def test_shares_and_latencies_are_of_the_collective_that_was_measured():
    link = Link(
        rate=1e9,
        latency=1.0,
        shares={"default": 0.5, "fused": 0.25},
        fixed={"fused": 2.0},
        hops={"fused": 3.0},
    )
    assert link.seconds("all_gather", 1e9, 4) == pytest.approx(1 / 0.5 + 1)
    assert link.seconds("fused", 1e9, 4) == pytest.approx(1 / 0.25 + 2 + 3 * 3)


def test_stages_in_a_node_are_near():
    assert point_to_point(cluster(), 4e11, 4) == pytest.approx(1)
    assert point_to_point(cluster(nodes=2), 4e11, 8) == pytest.approx(8)


def test_joined_nodes_are_one_domain():
    rack = cluster(nodes=32, per_node=4, domain=72)
    assert rack.domain == 72
    assert cluster(nodes=2, per_node=4, domain=72).domain == 8
    assert cluster(nodes=4, per_node=4).domain == 4
