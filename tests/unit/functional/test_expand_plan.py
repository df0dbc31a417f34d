import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from grove_megatron.functional.dispatch_plan import NOT_ROUTED
from grove_megatron.functional.expand_plan import ExpandPlan, Segments, plan_expand, unpack_probs
from grove_megatron.functional.groups import group_map
from grove_megatron.functional.permute import expand_rows, reduce_rows


@st.composite
def received(draw):
    """A selection [V, L] as a rank receives it, and its number of local groups."""
    groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    row = st.lists(st.booleans(), min_size=groups * per_group, max_size=groups * per_group)
    rows = draw(st.lists(row, max_size=6))
    return torch.tensor(rows, dtype=torch.bool).reshape(len(rows), groups * per_group), groups


def plan_of(selected: torch.Tensor, groups: int) -> ExpandPlan:
    packed = torch.zeros(selected.shape).masked_fill(~selected, NOT_ROUTED)
    return plan_expand(packed, selected.sum(0), group_map(selected, groups).sum(0))


def pairs_of(selected: torch.Tensor, groups: int) -> list[tuple[int, bool, int]]:
    """(expert, is not its row's owner, row) of every pair, in the order of the plan."""
    per_group = selected.shape[1] // groups
    found = []
    for row, expert in selected.nonzero().tolist():
        first = expert // per_group * per_group
        found.append((expert, bool(selected[row, first:expert].any()), row))
    return sorted(found)


def slices(end: torch.Tensor) -> list[slice]:
    return [slice(a, b) for a, b in pairwise([0, *end.tolist()])]


class TestPairs:
    @given(received())
    def test_they_go_by_expert_then_owners_first_then_row(self, case):
        selected, groups = case
        plan = plan_of(selected, groups)
        expected = pairs_of(selected, groups)
        experts = selected.shape[1]
        assert plan.rows.index.tolist() == [row for _, _, row in expected]
        assert plan.position_N.tolist() == [row * experts + e for e, _, row in expected]
        assert plan.segments.num_pairs == len(expected)
        assert plan.num_rows == selected.shape[0]

    @given(received())
    def test_every_met_row_and_group_has_one_owner_the_first_selected_expert(self, case):
        selected, groups = case
        plan = plan_of(selected, groups)
        segments = plan.segments
        expected = pairs_of(selected, groups)
        owners = [expected[n] for n in segments.owner_index.tolist()]
        assert owners == [pair for pair in expected if not pair[1]]
        per_group = selected.shape[1] // groups
        met = [(row, expert // per_group) for expert, _, row in owners]
        assert sorted(met) == sorted(map(tuple, group_map(selected, groups).nonzero().tolist()))
        assert plan.owner_position_M.tolist() == [row * groups + j for row, j in met]
        assert segments.num_owner_pairs == len(owners)
        assert segments.experts_per_group == per_group

    @given(received())
    def test_the_ends_enclose_the_pairs_and_the_owners_of_every_expert(self, case):
        selected, groups = case
        segments = plan_of(selected, groups).segments
        expected = pairs_of(selected, groups)
        owners = [pair for pair in expected if not pair[1]]
        assert segments.expert_end.dtype == segments.owner_end.dtype == torch.int32
        for end, pairs in ((segments.expert_end, expected), (segments.owner_end, owners)):
            assert end.numel() == selected.shape[1]
            for expert, where in enumerate(slices(end)):
                assert pairs[where] == [pair for pair in pairs if pair[0] == expert]
            assert end[-1] == len(pairs)

    @given(received())
    def test_the_owners_of_an_expert_are_the_first_of_its_pairs(self, case):
        selected, groups = case
        segments = plan_of(selected, groups).segments
        both = zip(slices(segments.expert_end), slices(segments.owner_end), strict=True)
        for of_expert, of_owner in both:
            owners = segments.owner_index[of_owner]
            assert owners.tolist() == list(range(of_expert.start, of_expert.start + len(owners)))

    @given(received(), st.integers(0, 2**32))
    def test_the_sum_of_the_pairs_is_every_row_once_per_selected_expert(self, case, seed):
        selected, groups = case
        plan = plan_of(selected, groups)
        x = torch.rand(
            selected.shape[0], 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        summed = reduce_rows(expand_rows(x, plan.rows), plan.rows)
        assert_close(summed, x * selected.sum(1, keepdim=True))

    def test_the_layout_of_two_experts_a_group(self):
        #                         e0 e1    e2 e3
        selected = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
        plan = plan_of(selected, 2)
        # e0: owns rows 0, 2. e1: owns 1, also 0. e2: owns 1. e3: owns 0, also 1.
        assert plan.rows.index.tolist() == [0, 2, 1, 0, 1, 0, 1]
        assert plan.segments.owner_index.tolist() == [0, 1, 2, 4, 5]
        assert plan.segments.expert_end.tolist() == [2, 4, 5, 7]
        assert plan.segments.owner_end.tolist() == [2, 3, 4, 5]
        assert plan.owner_position_M.tolist() == [0, 4, 2, 3, 1]

    def test_no_rows_make_no_work(self):
        plan = plan_of(torch.zeros(0, 4, dtype=torch.bool), 2)
        segments = plan.segments
        assert segments.num_pairs == segments.num_owner_pairs == plan.num_rows == 0
        assert segments.expert_end.tolist() == segments.owner_end.tolist() == [0, 0, 0, 0]
        assert plan.rows.index.numel() == plan.position_N.numel() == 0
        assert segments.owner_index.numel() == plan.owner_position_M.numel() == 0

    def test_a_plan_and_its_segments_are_frozen(self):
        plan = plan_of(torch.ones(2, 4, dtype=torch.bool), 2)
        with pytest.raises(dataclasses.FrozenInstanceError):
            plan.num_rows = 3
        with pytest.raises(dataclasses.FrozenInstanceError):
            plan.segments.num_pairs = 3


class TestRowsOfBoth:
    @given(received())
    def test_the_rows_of_the_experts_are_followed_by_those_of_the_adjugates_by_group(self, case):
        selected, groups = case
        plan = plan_of(selected, groups)
        both = plan.rows_of_both()
        pairs, owners = plan.segments.num_pairs, plan.segments.num_owner_pairs
        of_experts, of_adjugates = both.index.split([pairs, owners])
        assert torch.equal(of_experts, plan.rows.index)
        # As the adjugates' weights go.
        assert torch.equal(of_adjugates, plan.owner_position_M // groups)
        met = group_map(selected, groups)
        for j, rows in enumerate(of_adjugates.split(met.sum(0).tolist())):
            assert sorted(rows.tolist()) == met[:, j].nonzero()[:, 0].tolist()

    @given(received(), st.integers(0, 2**32))
    def test_their_sum_is_every_row_once_per_selected_expert_and_met_group(self, case, seed):
        selected, groups = case
        both = plan_of(selected, groups).rows_of_both()
        x = torch.rand(
            selected.shape[0], 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        work = selected.sum(1) + group_map(selected, groups).sum(1)
        assert_close(reduce_rows(expand_rows(x, both), both), x * work[:, None])


class TestWeights:
    @given(received(), st.integers(0, 2**32))
    def test_they_come_out_in_the_order_of_the_pairs_and_of_the_owners(self, case, seed):
        selected, groups = case
        generator = torch.Generator().manual_seed(seed)
        probs = torch.rand(selected.shape, generator=generator, dtype=torch.float64)
        packed = probs.masked_fill(~selected, NOT_ROUTED).requires_grad_()
        probs_N, group_probs_M = unpack_probs(packed, plan_of(selected, groups))
        pairs = pairs_of(selected, groups)
        per_group = selected.shape[1] // groups
        of_pairs = [probs[row, expert] for expert, _, row in pairs]
        of_owners = []
        for expert, other, row in pairs:
            first = expert // per_group * per_group
            members = slice(first, first + per_group)
            if not other:
                of_owners.append((probs[row, members] * selected[row, members]).sum())
        assert_close(probs_N, torch.tensor(of_pairs, dtype=torch.float64))
        assert_close(group_probs_M, torch.tensor(of_owners, dtype=torch.float64))

        up_N = torch.rand(probs_N.shape, generator=generator, dtype=torch.float64)
        up_M = torch.rand(group_probs_M.shape, generator=generator, dtype=torch.float64)
        (grad,) = torch.autograd.grad((probs_N, group_probs_M), packed, (up_N, up_M))
        expected = torch.zeros_like(probs)
        owner_of = {(row, e // per_group): e for e, other, row in pairs if not other}
        at_owner = iter(up_M)
        from_group = {(row, e): next(at_owner) for e, other, row in pairs if not other}
        for (expert, _, row), from_pair in zip(pairs, up_N, strict=True):
            owner = owner_of[row, expert // per_group]
            expected[row, expert] = from_pair + from_group[row, owner]
        assert_close(grad, expected)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_those_of_pairs_keep_their_dtype_and_groups_are_summed_in_fp32_or_wider(self, dtype):
        eps = torch.finfo(dtype).eps
        packed = torch.tensor([[1.0, eps / 2, NOT_ROUTED]], dtype=dtype)
        plan = plan_of(packed != NOT_ROUTED, 1)
        probs_N, group_probs_M = unpack_probs(packed, plan)
        assert probs_N.dtype == dtype
        assert group_probs_M.dtype == torch.promote_types(dtype, torch.float32)
        if dtype == torch.bfloat16:
            assert group_probs_M.tolist() == [1 + eps / 2]

    def test_a_weight_of_zero_is_not_one_that_was_not_selected(self):
        packed = torch.tensor([[0.0, NOT_ROUTED, NOT_ROUTED, 0.0]])
        plan = plan_expand(packed, torch.tensor([1, 0, 0, 1]), torch.tensor([1, 1]))
        assert plan.position_N.tolist() == [0, 3]
        assert plan.owner_position_M.tolist() == [0, 1]


def test_segments_of_experts_alone_have_no_owners():
    segments = Segments.of_experts(torch.tensor([2, 0, 3]), torch.device("cpu"))
    assert segments.expert_end.tolist() == [2, 2, 5]
    assert segments.owner_end.tolist() == [0, 0, 0]
    assert segments.expert_end.dtype == segments.owner_end.dtype == torch.int32
    assert segments.owner_index.shape == (0,)
    assert (segments.num_pairs, segments.num_owner_pairs) == (5, 0)


def test_a_row_has_one_owner_however_many_experts_of_the_group_it_selected():
    plan = plan_of(torch.ones(1, 300, dtype=torch.bool), 1)
    assert plan.segments.owner_end[-1] == 1
