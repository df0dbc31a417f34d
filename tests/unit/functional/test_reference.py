from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from grove_megatron.functional.activation import weighted_swiglu
from grove_megatron.functional.dispatch_plan import (
    count_work,
    pack_probs,
    plan_send,
    receive_probs,
    send_values,
)
from grove_megatron.functional.expand_plan import plan_expand, unpack_probs
from grove_megatron.functional.groups import group_probs
from grove_megatron.functional.permute import expand_rows, reduce_rows
from grove_megatron.functional.placement import Placement
from grove_megatron.functional.products import grouped_down, grouped_up
from grove_megatron.functional.reference import grove_layer, grove_routing, swiglu
from tests.unit.functional.exchange import exchange

HIDDEN, WIDTH, ADJUGATE_WIDTH = 4, 3, 2
ROUTINGS = ("top-k", "any number", "one expert", "none", "dropped", "one rank")


@dataclass(frozen=True, kw_only=True)
class Case:
    placement: Placement
    tokens_per_rank: list[int]
    routing_map_TE: Tensor
    scale: float
    leaves: dict[str, Tensor]


@st.composite
def cases(draw) -> Case:
    ranks, groups_per_rank = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    groups = ranks * groups_per_rank
    experts = groups * draw(st.integers(1, 3))
    tokens_per_rank = draw(st.lists(st.integers(0, 4), min_size=ranks, max_size=ranks))
    topk = draw(st.integers(1, experts))
    kind = draw(st.sampled_from(ROUTINGS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tokens = sum(tokens_per_rank)
    ranking = random(tokens, experts).argsort(dim=1).argsort(dim=1)
    routing_map = {
        "top-k": ranking < topk,
        "any number": random(tokens, experts) > 0,
        "one expert": torch.arange(experts).expand(tokens, -1) == topk - 1,
        "none": torch.zeros(tokens, experts, dtype=torch.bool),
        "dropped": (ranking < topk) & (random(tokens, experts) > 0),
        "one rank": torch.arange(experts).expand(tokens, -1) < experts // ranks,
    }[kind]
    probs = random(tokens, experts).abs() * routing_map
    probs = probs * (random(tokens, experts) > -1)  # some selected weights are exactly 0
    leaves = {
        "x": random(tokens, HIDDEN),
        "probs": probs,
        "fc1": random(experts, 2 * WIDTH, HIDDEN),
        "fc2": random(experts, HIDDEN, WIDTH),
        "adjugate fc1": random(groups, 2 * ADJUGATE_WIDTH, HIDDEN),
        "adjugate fc2": random(groups, HIDDEN, ADJUGATE_WIDTH),
    }
    placement = Placement(num_experts=experts, num_groups=groups, num_ranks=ranks)
    scale = draw(st.floats(0.01, 2.0))
    return Case(
        placement=placement,
        tokens_per_rank=tokens_per_rank,
        routing_map_TE=routing_map,
        scale=scale,
        leaves={name: leaf.requires_grad_() for name, leaf in leaves.items()},
    )


def experts_of(leaves: dict[str, Tensor]) -> list:
    return [
        partial(swiglu, fc1=fc1, fc2=fc2)
        for fc1, fc2 in zip(leaves["fc1"], leaves["fc2"], strict=True)
    ]


def adjugates_of(leaves: dict[str, Tensor]) -> list:
    return [
        partial(swiglu, fc1=fc1, fc2=fc2)
        for fc1, fc2 in zip(leaves["adjugate fc1"], leaves["adjugate fc2"], strict=True)
    ]


def layer_in_slices(case: Case) -> Tensor:
    """The layer as ``placement.num_ranks`` ranks compute it, in one process."""
    placement, leaves = case.placement, case.leaves
    ranks = range(placement.num_ranks)
    x = leaves["x"].split(case.tokens_per_rank)
    probs = leaves["probs"].split(case.tokens_per_rank)
    maps = case.routing_map_TE.split(case.tokens_per_rank)

    # [source, destination, 1 + L + L_groups]
    work = torch.stack([count_work(m, placement.num_ranks, placement.num_groups) for m in maps])
    rows = work[:, :, 0]
    experts, groups = work[:, :, 1:].split(
        [placement.experts_per_rank, placement.groups_per_rank], 2
    )
    pairs = experts.sum(2)

    send = [
        plan_send(maps[r], placement.num_ranks, int(rows[r].sum()), int(pairs[r].sum()))
        for r in ranks
    ]
    x_VH = exchange([expand_rows(x[r], send[r].rows) for r in ranks], rows.tolist())
    packed = [pack_probs(probs[r], maps[r]) for r in ranks]
    values = exchange([send_values(packed[r], send[r]) for r in ranks], pairs.tolist())
    codes = exchange([plan.code_P for plan in send], pairs.tolist())

    y_VH = []
    for r in ranks:
        packed_VL = receive_probs(
            values[r], codes[r], rows[:, r], pairs[:, r], len(x_VH[r]), placement.experts_per_rank
        )
        counts = experts[:, r].sum(0), groups[:, r].sum(0)
        y_VH.append(compute_on_rank(case, r, x_VH[r], packed_VL, *counts))

    y_UH = exchange(y_VH, rows.T.tolist())
    return torch.cat([reduce_rows(y_UH[r], send[r].rows) for r in ranks])


def compute_on_rank(
    case: Case,
    rank: int,
    x_VH: Tensor,
    packed_VL: Tensor,
    tokens_per_expert: Tensor,
    tokens_per_group: Tensor,
) -> Tensor:
    """Experts on their pairs, and adjugates on the owners' rows among them."""
    placement = case.placement
    local = {
        name: leaf.split(count)[rank]
        for name, leaf, count in [
            ("fc1", case.leaves["fc1"], placement.experts_per_rank),
            ("fc2", case.leaves["fc2"], placement.experts_per_rank),
            ("adjugate fc1", case.leaves["adjugate fc1"], placement.groups_per_rank),
            ("adjugate fc2", case.leaves["adjugate fc2"], placement.groups_per_rank),
        ]
    }
    plan = plan_expand(packed_VL.detach(), tokens_per_expert, tokens_per_group)
    probs_N, group_probs_M = unpack_probs(packed_VL, plan)
    x_NH = expand_rows(x_VH, plan.rows)
    h_N, h_M = grouped_up(x_NH, local["fc1"], local["adjugate fc1"], plan.segments)
    assert h_M is not None
    a_N = weighted_swiglu(h_N, probs_N)
    a_M = weighted_swiglu(h_M, case.scale * group_probs_M)
    y_NH = grouped_down(a_N, a_M, local["fc2"], local["adjugate fc2"], plan.segments)
    return reduce_rows(y_NH, plan.rows)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.integers(0, 2**32))
def test_any_number_of_ranks_computes_the_layer_and_every_gradient_of_the_reference(case, seed):
    leaves = list(case.leaves.values())
    sliced = layer_in_slices(case)
    whole = grove_layer(
        case.leaves["x"],
        case.leaves["probs"],
        case.routing_map_TE,
        experts_of(case.leaves),
        adjugates_of(case.leaves),
        case.scale,
    )
    assert_close(sliced, whole, rtol=0, atol=1e-10)
    if not sliced.requires_grad or not whole.requires_grad:
        assert not case.routing_map_TE.any()
        return
    upstream = torch.randn(
        whole.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    found = torch.autograd.grad(sliced, leaves, upstream, materialize_grads=True)
    expected = torch.autograd.grad(whole, leaves, upstream, materialize_grads=True)
    for name, ours, theirs in zip(case.leaves, found, expected, strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


class TestReferenceLayer:
    def test_it_is_the_dense_sum_over_all_experts_and_groups(self):
        torch.manual_seed(0)
        x, fc1, fc2 = torch.randn(5, HIDDEN), torch.randn(6, 6, HIDDEN), torch.randn(6, HIDDEN, 3)
        a1, a2 = torch.randn(2, 4, HIDDEN), torch.randn(2, HIDDEN, 2)
        chosen = torch.rand(5, 6) < 0.5
        probs = torch.rand(5, 6) * chosen
        leaves = {"fc1": fc1, "fc2": fc2, "adjugate fc1": a1, "adjugate fc2": a2}
        y = grove_layer(x, probs, chosen, experts_of(leaves), adjugates_of(leaves), 0.3)

        def all_outputs(first: Tensor, second: Tensor) -> Tensor:
            gate, up = torch.einsum("efh,th->tef", first, x).chunk(2, dim=-1)
            return torch.einsum("ehf,tef->teh", second, gate * torch.sigmoid(gate) * up)

        routed = (probs[..., None] * all_outputs(fc1, fc2)).sum(1)
        adjugate = (group_probs(probs, 2)[..., None] * all_outputs(a1, a2)).sum(1)
        assert_close(y, routed + 0.3 * adjugate)

    def test_an_adjugate_is_evaluated_once_per_token_and_group(self):
        calls = []

        def adjugate(x: Tensor) -> Tensor:
            calls.append(x)
            return x

        everything = torch.ones(3, 4, dtype=torch.bool)
        experts = [torch.zeros_like] * 4
        y = grove_layer(torch.ones(3, 2), everything * 0.25, everything, experts, [adjugate], 0.5)
        assert len(calls) == 3
        assert_close(y, torch.full((3, 2), 0.5))

    def test_no_tokens_and_no_experts_give_zeros(self):
        one = torch.ones(1, 2)
        nothing = torch.zeros(1, 2, dtype=torch.bool)
        experts, adjugates = [torch.clone] * 2, [torch.clone]
        assert grove_layer(one[:0], one[:0], nothing[:0], experts, adjugates, 1.0).shape == (0, 2)
        assert grove_layer(one, one, nothing, experts, adjugates, 1.0).tolist() == [[0.0, 0.0]]


class TestReferenceRouting:
    def test_weights_are_the_softmax_over_the_selected_logits(self):
        logits = torch.tensor([[1.0, 3.0, -2.0, 2.0]])
        probs, chosen = grove_routing(logits, 2)
        assert chosen.tolist() == [[False, True, False, True]]
        e = torch.e
        expected = torch.tensor([[0.0, e / (1 + e), 0.0, 1 / (1 + e)]])
        assert_close(probs, expected)

    def test_the_bias_selects_and_does_not_weigh(self):
        logits = torch.tensor([[1.0, 3.0, -2.0, 2.0]])
        probs, chosen = grove_routing(logits, 2, torch.tensor([0.0, 0.0, 5.0, 0.0]))
        assert chosen.tolist() == [[False, True, True, False]]
        assert_close(probs[0, [1, 2]], torch.softmax(torch.tensor([3.0, -2.0]), 0))

    def test_the_bias_is_added_to_the_sigmoid_and_not_to_the_logit(self):
        # sigmoid: 0.982, 0.731, so 0.3 turns the order; on the logits it would take 3.
        _, chosen = grove_routing(torch.tensor([[4.0, 1.0]]), 1, torch.tensor([0.0, 0.3]))
        assert chosen.tolist() == [[False, True]]

    def test_ties_go_to_the_lowest_index(self):
        _, chosen = grove_routing(torch.zeros(1, 4), 2)
        assert chosen.tolist() == [[True, True, False, False]]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_no_tokens_give_empty_results_of_the_dtype_of_the_logits(self, dtype):
        probs, chosen = grove_routing(torch.zeros(0, 4, dtype=dtype), 2)
        assert probs.shape == chosen.shape == (0, 4)
        assert probs.dtype == dtype
