import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from grove_megatron.functional import dispatch_plan
from grove_megatron.functional.dispatch_plan import (
    NOT_ROUTED,
    SendPlan,
    count_work,
    pack_probs,
    plan_send,
    receive_probs,
    send_values,
)
from grove_megatron.functional.expand_plan import plan_expand, unpack_probs
from grove_megatron.functional.permute import expand_rows, reduce_rows
from tests.unit.functional.exchange import exchange


@st.composite
def routing_maps(draw, ranks: int, experts_per_rank: int):
    """A routing map [T, E] with 0..E experts per token."""
    experts = ranks * experts_per_rank
    token = st.lists(st.booleans(), min_size=experts, max_size=experts)
    tokens = draw(st.lists(token | st.just([False] * experts), max_size=7))
    return torch.tensor(tokens, dtype=torch.bool).reshape(len(tokens), experts)


@st.composite
def routings(draw):
    """A routing map and the number of ranks that its experts are spread over."""
    ranks = draw(st.integers(1, 4))
    return draw(routing_maps(ranks, draw(st.integers(1, 4)))), ranks


@st.composite
def worlds(draw):
    """A routing map of every rank: all those who send to each other."""
    ranks, experts_per_rank = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return [draw(routing_maps(ranks, experts_per_rank)) for _ in range(ranks)]


def plan_of(routing_map: torch.Tensor, ranks: int) -> SendPlan:
    """The plan, with the counts that it is to be given."""
    per_rank = routing_map.shape[1] // ranks
    rows = routing_map.unflatten(1, (ranks, per_rank)).any(-1).sum()
    return plan_send(routing_map, ranks, int(rows), int(routing_map.sum()))


def rows_per_rank(routing_map: torch.Tensor, ranks: int) -> list[int]:
    return count_work(routing_map, ranks, ranks)[:, 0].tolist()


def random_probs(shape: torch.Size, seed: int, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


class TestCountWork:
    @given(st.data(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
    def test_it_counts_rows_and_pairs_with_every_expert_and_group(
        self, data, ranks, groups_per_rank, per_group
    ):
        experts_per_rank = groups_per_rank * per_group
        routing_map = data.draw(routing_maps(ranks, experts_per_rank))
        chosen = [(t, e) for t, e in routing_map.nonzero().tolist()]
        expected = []
        for rank in range(ranks):
            mine = range(rank * experts_per_rank, (rank + 1) * experts_per_rank)
            rows = {t for t, e in chosen if e in mine}
            experts = [sum(e == i for _, e in chosen) for i in mine]
            groups = [
                len({t for t, e in chosen if e // per_group == j})
                for j in range(rank * groups_per_rank, (rank + 1) * groups_per_rank)
            ]
            expected.append([len(rows), *experts, *groups])
        work = count_work(routing_map, ranks, ranks * groups_per_rank)
        assert work.dtype == torch.int64
        assert work.tolist() == expected

    def test_no_tokens_are_no_work(self):
        work = count_work(torch.zeros(0, 8, dtype=torch.bool), 2, 4)
        assert work.tolist() == [[0] * 7] * 2


class TestSendPlan:
    @given(routings())
    def test_there_is_one_row_per_distinct_token_and_rank(self, case):
        routing_map, ranks = case
        plan = plan_of(routing_map, ranks)
        per_rank = routing_map.shape[1] // ranks
        expected = sorted({(e // per_rank, t) for t, e in routing_map.nonzero().tolist()})
        assert plan.rows.index.tolist() == [t for _, t in expected]
        assert rows_per_rank(routing_map, ranks) == [
            sum(rank == r for r, _ in expected) for rank in range(ranks)
        ]
        assert plan.num_tokens == routing_map.shape[0]

    @given(routings())
    def test_pairs_go_by_rank_then_token_then_expert_each_with_its_own_row(self, case):
        routing_map, ranks = case
        plan = plan_of(routing_map, ranks)
        experts = routing_map.shape[1]
        per_rank = experts // ranks
        pairs = [divmod(at, experts) for at in plan.pair_P.tolist()]
        assert pairs == sorted(
            map(tuple, routing_map.nonzero().tolist()), key=lambda p: (p[1] // per_rank, *p)
        )
        rows = plan.rows.index.split(rows_per_rank(routing_map, ranks))
        for (token, expert), code in zip(pairs, plan.code_P.tolist(), strict=True):
            row, local = divmod(code, per_rank)
            assert rows[expert // per_rank][row] == token
            assert local == expert % per_rank

    @given(routings(), st.integers(0, 2**32))
    def test_what_comes_back_is_every_token_once_per_rank_it_went_to(self, case, seed):
        routing_map, ranks = case
        plan = plan_of(routing_map, ranks)
        x = random_probs((plan.num_tokens, 3), seed)
        back = reduce_rows(expand_rows(x, plan.rows), plan.rows)
        by_rank = routing_map.unflatten(1, (ranks, routing_map.shape[1] // ranks))
        assert_close(back, x * by_rank.any(-1).sum(-1, keepdim=True))

    def test_no_tokens_make_an_empty_plan(self):
        plan = plan_send(torch.zeros(0, 8, dtype=torch.bool), 4, 0, 0)
        assert plan.rows.index.numel() == plan.pair_P.numel() == plan.code_P.numel() == 0
        assert plan.rows.bag_start.tolist() == [0]
        assert plan.num_tokens == 0

    def test_a_rank_that_nobody_needs_gets_no_rows(self):
        routing_map = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 1]], dtype=torch.bool)
        plan = plan_of(routing_map, 3)
        assert rows_per_rank(routing_map, 3) == [2, 0, 1]
        assert plan.rows.index.tolist() == [0, 1, 1]
        assert plan.code_P.tolist() == [0, 1, 3, 1]

    def test_a_plan_is_frozen(self):
        plan = plan_of(torch.ones(2, 4, dtype=torch.bool), 2)
        with pytest.raises(dataclasses.FrozenInstanceError):
            plan.num_tokens = 3


def cross(maps: list[torch.Tensor], probs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Send the weights between all ranks: packed_VL of every rank."""
    ranks = range(len(maps))
    local = maps[0].shape[1] // len(maps)
    plans = [plan_of(m, len(maps)) for m in maps]
    rows = torch.tensor([rows_per_rank(m, len(maps)) for m in maps])
    pairs = torch.stack([m.sum(0).unflatten(0, (-1, local)).sum(1) for m in maps])
    packed = [pack_probs(p, m) for p, m in zip(probs, maps, strict=True)]
    values = [send_values(p, plan) for p, plan in zip(packed, plans, strict=True)]
    values_P = exchange(values, pairs.tolist())
    code_P = exchange([plan.code_P for plan in plans], pairs.tolist())
    return [
        receive_probs(
            values_P[r],
            code_P[r],
            rows[:, r],
            pairs[:, r],
            num_rows=int(rows[:, r].sum()),
            num_local_experts=local,
        )
        for r in ranks
    ]


class TestWeights:
    @given(worlds(), st.integers(0, 2**32))
    def test_what_arrives_are_the_packed_weights_of_the_rows_from_every_rank(self, maps, seed):
        probs = [random_probs(m.shape, seed + r) for r, m in enumerate(maps)]
        local = maps[0].shape[1] // len(maps)
        for rank, arrived in enumerate(cross(maps, probs)):
            mine = slice(rank * local, (rank + 1) * local)
            sent = [pack_probs(p, m)[:, mine] for p, m in zip(probs, maps, strict=True)]
            needed = [m[:, mine].any(-1) for m in maps]
            expected = [p[n] for p, n in zip(sent, needed, strict=True)]
            assert torch.equal(arrived, torch.cat(expected))

    @given(worlds(), st.integers(0, 2**32))
    def test_only_selected_weights_get_a_gradient_and_each_its_own(self, maps, seed):
        probs = [random_probs(m.shape, seed + r).requires_grad_() for r, m in enumerate(maps)]
        arrived = cross(maps, probs)
        upstream = [random_probs(p.shape, seed - r) for r, p in enumerate(arrived)]
        found = torch.autograd.grad(arrived, probs, upstream)
        # The gradient of a weight travels back to where the weight came from.
        local = maps[0].shape[1] // len(maps)
        row = [0] * len(maps)
        for m, grad in zip(maps, found, strict=True):
            expected = torch.zeros_like(grad)
            for t in range(m.shape[0]):
                for rank in range(len(maps)):
                    mine = slice(rank * local, (rank + 1) * local)
                    if m[t, mine].any():
                        expected[t, mine] = upstream[rank][row[rank]] * m[t, mine]
                        row[rank] += 1
            assert torch.equal(grad, expected)

    @given(routings(), st.integers(0, 2**32))
    def test_weights_are_marked_where_an_expert_was_not_selected(self, case, seed):
        routing_map, _ = case
        probs = random_probs(routing_map.shape, seed).requires_grad_()
        packed = pack_probs(probs, routing_map)
        assert torch.equal(packed == NOT_ROUTED, ~routing_map)
        assert torch.equal(packed[routing_map], probs[routing_map])
        (grad,) = torch.autograd.grad(packed.sum(), probs)
        assert torch.equal(grad, routing_map.double())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    def test_weights_travel_in_fp32_or_wider_and_their_gradients_come_back_as_they_are(self, dtype):
        routing_map = torch.tensor([[True, False, True, True], [False, True, False, False]])
        probs = random_probs(routing_map.shape, 0, dtype).requires_grad_()
        packed = pack_probs(probs, routing_map)
        assert packed.dtype == dtype
        values = send_values(packed, plan_of(routing_map, 2))
        assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        expected = probs[[0, 1, 0, 0], [0, 1, 2, 3]]
        assert torch.equal(values, expected.to(values.dtype))
        (grad,) = torch.autograd.grad(values.sum(), probs)
        assert grad.dtype == dtype
        assert torch.equal(grad, routing_map.to(dtype))

    def test_no_pairs_make_rows_without_experts(self):
        nothing = torch.zeros(0)
        code = torch.zeros(0, dtype=torch.int64)
        counts = torch.zeros(2, dtype=torch.int64)
        assert receive_probs(nothing, code, counts, counts, 0, 3).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_selected_expert_whose_weight_underflowed_stays_selected(dtype):
    routing_map = torch.tensor([[True, True, False, False]])
    probs = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    packed, _ = cross([routing_map, routing_map], [probs, probs])
    plan = plan_expand(packed.detach(), torch.tensor([2, 2]), torch.tensor([2, 2]))
    assert plan.position_N.tolist() == [0, 2, 1, 3]
    probs_N, group_probs_M = unpack_probs(packed, plan)
    (grad,) = torch.autograd.grad(probs_N.sum() + 2 * group_probs_M.sum(), probs)
    # Two ranks sent the same token.
    assert grad.tolist() == [[6.0, 6.0, 0.0, 0.0]]


def test_weights_of_unselected_experts_never_arrive():
    routing_map = torch.tensor([[True, False, False, False], [False, False, False, False]])
    everything = torch.full((2, 4), 0.7)
    first, second = cross([routing_map, routing_map], [everything, everything])
    assert_close(first, torch.tensor([[0.7, NOT_ROUTED]] * 2))
    assert second.shape == (0, 2)


def test_more_positions_than_a_record_can_name_are_refused(monkeypatch):
    monkeypatch.setattr(dispatch_plan, "MAX_POSITIONS", 7)
    plan_send(torch.zeros(3, 4, dtype=torch.bool), 2, 0, 0)
    with pytest.raises(ValueError, match=r"tokens on this rank \(4\) x experts on a rank \(2\)"):
        plan_send(torch.zeros(4, 4, dtype=torch.bool), 2, 0, 0)
