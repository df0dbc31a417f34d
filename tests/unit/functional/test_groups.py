import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from grove_megatron.functional.groups import group_map, group_probs, scale_bound

SIZES = {"groups": st.integers(1, 5), "per_group": st.integers(1, 4), "tokens": st.integers(0, 6)}


def routing(tokens: int, experts: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(tokens, experts, generator=generator) < 0.4
    weights = torch.rand(tokens, experts, generator=generator, dtype=torch.float64)
    return weights * chosen, chosen


def test_groups_are_contiguous():
    chosen = torch.tensor([[0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1]], dtype=torch.bool)
    assert group_map(chosen, 3).tolist() == [[True, False, False], [False, True, True]]
    assert group_map(chosen, 2).tolist() == [[True, False], [True, True]]


@given(**SIZES, seed=st.integers(0, 2**32))
def test_a_token_meets_a_group_iff_it_selects_one_of_its_experts(groups, per_group, tokens, seed):
    _, chosen = routing(tokens, groups * per_group, seed)
    found = group_map(chosen, groups)
    assert found.dtype == torch.bool
    assert found.shape == (tokens, groups)
    for t in range(tokens):
        expected = {i // per_group for i in range(groups * per_group) if chosen[t, i]}
        assert set(found[t].nonzero().flatten().tolist()) == expected


@given(**SIZES, seed=st.integers(0, 2**32))
def test_the_weight_of_a_group_is_the_sum_over_its_experts(groups, per_group, tokens, seed):
    probs, _ = routing(tokens, groups * per_group, seed)
    expected = torch.zeros(tokens, groups, dtype=torch.float64)
    for i in range(groups * per_group):
        expected[:, i // per_group] += probs[:, i]
    assert_close(group_probs(probs, groups), expected)


def test_a_selected_expert_whose_weight_underflowed_still_meets_its_group():
    chosen = torch.tensor([[True, False, False, False]])
    assert group_map(chosen, 2).tolist() == [[True, False]]
    assert group_probs(torch.zeros(1, 4), 2).tolist() == [[0.0, 0.0]]


def test_group_weights_keep_the_dtype_of_the_weights():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert group_probs(torch.ones(2, 4, dtype=dtype), 2).dtype == dtype


def test_every_expert_of_a_group_gets_the_gradient_of_the_group():
    probs = torch.rand(3, 6, requires_grad=True)
    upstream = torch.rand(3, 2)
    group_probs(probs, 2).backward(upstream)
    assert_close(probs.grad, upstream.repeat_interleave(3, dim=1))


def test_the_scale_bound_is_groups_per_expert():
    assert scale_bound(64, 128) == 0.5
    assert scale_bound(2, 8) == 0.25


@given(**SIZES, seed=st.integers(0, 2**32))
def test_at_the_scale_bound_an_adjugate_never_outweighs_its_heaviest_expert(
    groups, per_group, tokens, seed
):
    probs, _ = routing(tokens, groups * per_group, seed)
    adjugate = scale_bound(groups, groups * per_group) * group_probs(probs, groups)
    heaviest = probs.reshape(tokens, groups, per_group).amax(-1)
    assert (adjugate <= heaviest + 1e-12).all()
