import dataclasses
import re

import pytest

from grove_megatron.functional.placement import Placement


def test_every_rank_holds_an_equal_slice_of_experts_and_groups():
    placement = Placement(num_experts=24, num_groups=6, num_ranks=3)
    assert placement.experts_per_group == 4
    assert placement.experts_per_rank == 8
    assert placement.groups_per_rank == 2


def test_the_groups_of_a_rank_are_the_groups_of_its_experts():
    placement = Placement(num_experts=24, num_groups=6, num_ranks=3)
    for expert in range(24):
        group = expert // placement.experts_per_group
        assert group // placement.groups_per_rank == expert // placement.experts_per_rank


@pytest.mark.parametrize("groups", [3, -2, 16])
def test_groups_that_do_not_divide_the_experts_are_refused(groups):
    expected = f"num_experts (8) is not a multiple of num_groups ({groups}); choose"
    with pytest.raises(ValueError, match=re.escape(expected)):
        Placement(num_experts=8, num_groups=groups, num_ranks=1)


@pytest.mark.parametrize("ranks", [3, 0, -1, 8])
def test_ranks_that_would_split_a_group_are_refused(ranks):
    expected = f"num_groups (4) is not a multiple of num_ranks ({ranks}); a group and its adjugate"
    with pytest.raises(ValueError, match=re.escape(expected)):
        Placement(num_experts=8, num_groups=4, num_ranks=ranks)


def test_a_plain_model_has_no_groups():
    placement = Placement(num_experts=6, num_groups=0, num_ranks=3)
    assert placement.experts_per_rank == 2
    assert placement.groups_per_rank == 0
    with pytest.raises(ValueError, match=r"num_experts \(6\) is not a multiple of num_ranks \(4\)"):
        Placement(num_experts=6, num_groups=0, num_ranks=4)


def test_a_placement_is_frozen():
    placement = Placement(num_experts=8, num_groups=4, num_ranks=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        placement.num_ranks = 4


def test_an_order_of_groups_is_one_of_their_experts():
    placement = Placement(num_experts=8, num_groups=4, num_ranks=2, order=(1, 3, 0, 2))
    assert placement.expert_order == (2, 3, 6, 7, 0, 1, 4, 5)
    assert placement.held(placement.expert_order, 1) == (0, 1, 4, 5)
    assert placement.held((1, 3, 0, 2), 0) == (1, 3)
    plain = Placement(num_experts=4, num_groups=0, num_ranks=2, order=(1, 3, 0, 2))
    assert plain.expert_order == (1, 3, 0, 2)
    assert Placement(num_experts=4, num_groups=2, num_ranks=2).expert_order is None


@pytest.mark.parametrize("order", [(3, 1, 0, 2), (0, 1, 2), (0, 1, 2, 2), (1, 2, 3, 4)])
def test_an_order_has_every_group_once_and_slices_that_ascend(order):
    with pytest.raises(AssertionError):
        Placement(num_experts=8, num_groups=4, num_ranks=2, order=order)
