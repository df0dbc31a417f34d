import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from grove_megatron.functional.dispatch_plan import (
    NOT_ROUTED,
    pack_probs,
    plan_expand,
    plan_send,
    unpack_probs,
)
from grove_megatron.functional.permute import add_rows, take_rows


@st.composite
def routings(draw):
    """A routing map [T, E] with 0..E experts per token, and the number of ranks."""
    ranks, experts_per_rank = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    experts = ranks * experts_per_rank
    token = st.lists(st.booleans(), min_size=experts, max_size=experts)
    tokens = draw(st.lists(token | st.just([False] * experts), max_size=7))
    return torch.tensor(tokens, dtype=torch.bool).reshape(len(tokens), experts), ranks


@st.composite
def received(draw):
    """A selection [V, L] as a rank receives it, and its number of local groups."""
    groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    row = st.lists(st.booleans(), min_size=groups * per_group, max_size=groups * per_group)
    rows = draw(st.lists(row, max_size=6))
    return torch.tensor(rows, dtype=torch.bool).reshape(len(rows), groups * per_group), groups


def pairs(mask: torch.Tensor) -> list[tuple[int, int]]:
    """(column, row) of every True, by column, then by row."""
    return sorted((column, row) for row, column in mask.nonzero().tolist())


class TestSendPlan:
    @given(routings())
    def test_there_is_one_row_per_distinct_token_and_rank(self, case):
        routing_map, ranks = case
        plan = plan_send(routing_map, ranks)
        per_rank = routing_map.shape[1] // ranks
        expected = sorted({(e // per_rank, t) for t, e in routing_map.nonzero().tolist()})
        sent = list(zip(plan.rank_U.tolist(), plan.token_U.tolist(), strict=True))
        assert sent == expected
        assert plan.rows == len(expected)
        assert plan.rows_per_rank == tuple(
            sum(rank == r for r, _ in expected) for rank in range(ranks)
        )

    @given(routings())
    def test_pairs_and_tokens_are_counted_apart_from_rows(self, case):
        routing_map, ranks = case
        plan = plan_send(routing_map, ranks)
        assert plan.num_tokens == routing_map.shape[0]
        assert plan.routed_pairs == routing_map.sum().item()
        assert plan.rows <= plan.routed_pairs

    @given(routings(), st.integers(0, 2**32))
    def test_what_comes_back_is_every_token_once_per_rank_it_went_to(self, case, seed):
        routing_map, ranks = case
        plan = plan_send(routing_map, ranks)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(plan.num_tokens, 3, generator=generator, dtype=torch.float64)
        back = add_rows([(take_rows(x, plan.token_U), plan.token_U)], plan.num_tokens, x.dtype)
        by_rank = routing_map.reshape(plan.num_tokens, ranks, routing_map.shape[1] // ranks)
        visited = by_rank.any(-1).sum(-1, keepdim=True)
        assert_close(back, x * visited)

    def test_no_tokens_make_an_empty_plan(self):
        plan = plan_send(torch.zeros(0, 8, dtype=torch.bool), 4)
        assert plan.rows == plan.routed_pairs == plan.num_tokens == 0
        assert plan.rows_per_rank == (0, 0, 0, 0)

    def test_a_rank_that_nobody_needs_gets_no_rows(self):
        routing_map = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 1]], dtype=torch.bool)
        plan = plan_send(routing_map, 3)
        assert plan.rows_per_rank == (2, 0, 1)
        assert plan.token_U.tolist() == [0, 1, 1]

    def test_counts_are_plain_ints(self):
        plan = plan_send(torch.ones(2, 4, dtype=torch.bool), 2)
        counts = (*plan.rows_per_rank, plan.rows, plan.num_tokens, plan.routed_pairs)
        assert all(type(count) is int for count in counts)

    def test_a_plan_is_frozen(self):
        plan = plan_send(torch.ones(2, 4, dtype=torch.bool), 2)
        with pytest.raises(dataclasses.FrozenInstanceError):
            plan.num_tokens = 3


class TestPackedProbs:
    @given(routings(), st.integers(0, 2**32))
    def test_a_row_carries_the_weights_of_its_own_rank_and_marks_the_rest(self, case, seed):
        routing_map, ranks = case
        plan = plan_send(routing_map, ranks)
        generator = torch.Generator().manual_seed(seed)
        probs = torch.rand(routing_map.shape, generator=generator)
        packed = pack_probs(probs, routing_map, plan)
        per_rank = routing_map.shape[1] // ranks
        assert packed.shape == (plan.rows, per_rank)
        for u, (t, r) in enumerate(zip(plan.token_U.tolist(), plan.rank_U.tolist(), strict=True)):
            for local in range(per_rank):
                expert = r * per_rank + local
                expected = probs[t, expert].item() if routing_map[t, expert] else NOT_ROUTED
                assert packed[u, local].item() == expected

    @given(routings())
    def test_only_selected_weights_get_a_gradient(self, case):
        routing_map, ranks = case
        probs = torch.rand(routing_map.shape, dtype=torch.float64, requires_grad=True)
        packed = pack_probs(probs, routing_map, plan_send(routing_map, ranks))
        (grad,) = torch.autograd.grad(packed.sum(), probs)
        assert_close(grad, routing_map.double())

    def test_the_dtype_is_kept(self):
        routing_map = torch.ones(2, 4, dtype=torch.bool)
        plan = plan_send(routing_map, 2)
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            probs = torch.ones(2, 4, dtype=dtype)
            assert pack_probs(probs, routing_map, plan).dtype == dtype


class TestExpandPlan:
    @given(received())
    def test_experts_see_every_selected_pair_by_expert_then_row(self, case):
        selected, groups = case
        plan = plan_expand(torch.zeros(selected.shape).masked_fill(~selected, NOT_ROUTED), groups)
        found = list(zip(plan.expert_N.tolist(), plan.row_N.tolist(), strict=True))
        assert found == pairs(selected)
        assert plan.tokens_per_expert.tolist() == selected.sum(0).tolist()
        assert plan.num_rows == selected.shape[0]

    @given(received())
    def test_adjugates_see_every_row_once_per_group_it_meets(self, case):
        selected, groups = case
        plan = plan_expand(torch.zeros(selected.shape).masked_fill(~selected, NOT_ROUTED), groups)
        met = selected.reshape(selected.shape[0], groups, selected.shape[1] // groups).any(-1)
        assert list(zip(plan.group_M.tolist(), plan.row_M.tolist(), strict=True)) == pairs(met)
        assert plan.tokens_per_group.tolist() == met.sum(0).tolist()

    @given(received(), st.integers(0, 2**32))
    def test_weights_come_out_in_the_order_of_the_pairs(self, case, seed):
        selected, groups = case
        generator = torch.Generator().manual_seed(seed)
        probs = torch.rand(selected.shape, generator=generator, dtype=torch.float64)
        packed = probs.masked_fill(~selected, NOT_ROUTED)
        plan = plan_expand(packed, groups)
        probs_N, group_probs_M = unpack_probs(packed, plan, groups)
        per_group = selected.shape[1] // groups
        assert_close(
            probs_N, torch.tensor([probs[v, i] for i, v in pairs(selected)], dtype=torch.float64)
        )
        expected = [
            sum(probs[v, i] for i in range(j * per_group, (j + 1) * per_group) if selected[v, i])
            for j, v in zip(plan.group_M.tolist(), plan.row_M.tolist(), strict=True)
        ]
        assert_close(group_probs_M, torch.tensor(expected, dtype=torch.float64))

    def test_counts_lie_on_the_cpu_as_int64(self):
        plan = plan_expand(torch.zeros(3, 4), 2)
        for counts in (plan.tokens_per_expert, plan.tokens_per_group):
            assert counts.device.type == "cpu"
            assert counts.dtype == torch.int64

    def test_no_rows_make_no_work(self):
        plan = plan_expand(torch.zeros(0, 4), 2)
        assert plan.tokens_per_expert.tolist() == [0, 0, 0, 0]
        assert plan.tokens_per_group.tolist() == [0, 0]
        assert plan.row_N.numel() == plan.row_M.numel() == plan.num_rows == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_selected_expert_whose_weight_underflowed_stays_selected(dtype):
    routing_map = torch.tensor([[True, True, False, False]])
    probs = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    send = plan_send(routing_map, 1)
    packed = pack_probs(probs, routing_map, send)
    plan = plan_expand(packed.detach(), 4)
    assert plan.expert_N.tolist() == [0, 1]
    assert plan.group_M.tolist() == [0, 1]
    probs_N, group_probs_M = unpack_probs(packed, plan, 4)
    (grad,) = torch.autograd.grad(probs_N.sum() + 2 * group_probs_M.sum(), probs)
    assert grad.tolist() == [[3.0, 3.0, 0.0, 0.0]]


def test_weights_of_unselected_experts_never_arrive():
    routing_map = torch.tensor([[True, False], [False, False]])
    packed = pack_probs(torch.full((2, 2), 0.7), routing_map, plan_send(routing_map, 1))
    probs_N, group_probs_M = unpack_probs(packed, plan_expand(packed, 1), 1)
    assert_close(probs_N, torch.tensor([0.7]))
    assert_close(group_probs_M, torch.tensor([0.7]))
