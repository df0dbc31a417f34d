import os

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.testing import assert_close

from grove_megatron import runtime
from grove_megatron.config import GroveTransformerConfig
from grove_megatron.functional.reference import grove_routing
from grove_megatron.moe.router import GroveRouter
from grove_megatron.parts.scoring.grove import DecoupledScoring

from .routers import megatrons_router

TOKENS, EXPERTS, TOPK, HIDDEN = 12, 8, 3, 16


@pytest.fixture(scope="module", autouse=True)
def _one_rank(tmp_path_factory):
    """Megatron's process groups for a job of one rank."""
    store = dist.FileStore(os.fspath(tmp_path_factory.mktemp("store") / "file"), 1)
    with runtime.cpu():
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(1)
        yield
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def make_router(**settings) -> GroveRouter:
    config = GroveTransformerConfig(
        **{
            "num_layers": 1,
            "hidden_size": HIDDEN,
            "num_attention_heads": 2,
            "add_bias_linear": False,
            "num_moe_experts": EXPERTS,
            "moe_router_topk": TOPK,
            "moe_router_load_balancing_type": "none",
            "moe_token_dispatcher_type": "alltoall",
            "grove_num_groups": 4,
            "grove_adjugate_ffn_hidden_size": 4,
            **settings,
        }
    )
    return GroveRouter(config, ProcessGroupCollection.use_mpu_process_groups())


def random_logits(seed: int = 0, tokens: int = TOKENS, dtype=torch.float32) -> torch.Tensor:
    """Logits [T, E] whose values, in 16 bits too, are all different within a token."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(tokens, EXPERTS, generator=generator).argsort(dim=1)
    shift = torch.randint(-2, 3, (tokens, 1), generator=generator)
    return ((ranks - EXPERTS / 2) / 2 + shift).to(dtype)


def random_bias(seed: int = 1) -> torch.Tensor:
    return torch.randn(EXPERTS, generator=torch.Generator().manual_seed(seed)) / 4


def route(router: GroveRouter, logits: torch.Tensor, **named) -> tuple[torch.Tensor, torch.Tensor]:
    """Route [T, E] logits as one sequence."""
    return router.routing(logits.unsqueeze(1), **named)


def with_bias(bias: torch.Tensor | float, **settings) -> GroveRouter:
    router = make_router(moe_router_enable_expert_bias=True, **settings)
    router.expert_bias.copy_(torch.as_tensor(bias).expand(EXPERTS))
    return router


@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(2, EXPERTS), st.booleans())
def test_grove_scoring_is_that_of_the_reference(seed, tokens, topk, biased):
    logits = random_logits(seed, tokens)
    bias = random_bias(seed) if biased else None
    settings = {"moe_router_topk": topk}
    router = make_router(**settings) if bias is None else with_bias(bias, **settings)
    probs, chosen = route(router, logits)
    expected_probs, expected_map = grove_routing(logits, topk, bias)
    assert torch.equal(chosen, expected_map)
    assert_close(probs, expected_probs)


def test_the_gradient_of_the_weights_is_that_of_the_reference():
    router, upstream = with_bias(random_bias()), torch.randn(TOKENS, EXPERTS)
    logits = random_logits().requires_grad_()
    (ours,) = torch.autograd.grad(route(router, logits)[0], logits, upstream)
    (theirs,) = torch.autograd.grad(grove_routing(logits, TOPK, random_bias())[0], logits, upstream)
    assert_close(ours, theirs)


def test_a_bias_changes_the_selection():
    logits = random_logits()
    _, plain = route(make_router(), logits)
    _, biased = route(with_bias(random_bias() * 4), logits)
    assert (plain != biased).any()
    assert (biased.sum(1) == TOPK).all()


def test_a_bias_does_not_change_the_weights_given_the_selection():
    logits = random_logits()
    probs, chosen = route(with_bias(random_bias() * 4), logits)
    expected = torch.softmax(logits.masked_fill(~chosen, float("-inf")), dim=-1)
    assert_close(probs, expected)


def test_the_bias_is_added_to_the_sigmoid_of_the_logit():
    logits = torch.zeros(1, EXPERTS) - 9.0
    logits[0, :3] = torch.tensor([6.0, 4.0, 3.0])  # sigmoid: 0.9975, 0.982, 0.953
    bias = torch.zeros(EXPERTS)
    bias[2] = 0.02
    _, chosen = route(with_bias(bias, moe_router_topk=2), logits)
    assert chosen[0].nonzero().flatten().tolist() == [0, 1]
    bias[2] = 0.1
    _, chosen = route(with_bias(bias, moe_router_topk=2), logits)
    assert chosen[0].nonzero().flatten().tolist() == [0, 2]


@pytest.mark.parametrize("shift", [-2.0, -0.25, 0.5, 4.0])
def test_shifting_all_biases_leaves_the_selection(shift):
    logits = random_logits()
    probs, chosen = route(with_bias(random_bias()), logits)
    shifted_probs, shifted = route(with_bias(random_bias() + shift), logits)
    assert torch.equal(chosen, shifted)
    assert torch.equal(probs, shifted_probs)


@pytest.mark.parametrize("router", ["no bias", "bias of zero"])
@pytest.mark.parametrize("pre_softmax", [False, True])
def test_without_a_bias_it_is_megatrons_softmax_router_where_no_logits_tie(router, pre_softmax):
    logits = random_logits()
    settings = {"moe_router_pre_softmax": pre_softmax}
    made = make_router(**settings) if router == "no bias" else with_bias(0.0, **settings)
    probs, chosen = route(made, logits)
    expected_probs, expected_map = topk_routing_with_score_function(
        logits, TOPK, use_pre_softmax=pre_softmax, score_function="softmax"
    )
    assert torch.equal(chosen, expected_map)
    assert_close(probs, expected_probs)


def test_without_a_bias_saturated_logits_do_not_tie():
    logits = torch.arange(30.0, 30.0 + EXPERTS).unsqueeze(0)
    assert torch.sigmoid(logits).unique().numel() == 1
    _, chosen = route(make_router(), logits)
    assert chosen[0].nonzero().flatten().tolist() == [EXPERTS - 3, EXPERTS - 2, EXPERTS - 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("pre_softmax", [False, True])
def test_weights_are_fp32_whatever_the_dtype_of_the_logits(dtype, pre_softmax):
    logits = random_logits(dtype=dtype)
    for router in (
        make_router(moe_router_pre_softmax=pre_softmax),
        with_bias(random_bias(), moe_router_pre_softmax=pre_softmax),
    ):
        probs, chosen = route(router, logits)
        from_fp32, map_fp32 = route(router, logits.float())
        assert probs.dtype == torch.float32
        assert torch.equal(chosen, map_fp32)
        assert torch.equal(probs, from_fp32)


def test_scores_to_select_by_are_fp64_and_carry_no_gradient():
    logits = random_logits(dtype=torch.bfloat16).requires_grad_()
    for bias in (None, random_bias().bfloat16()):
        scores = DecoupledScoring(pre_softmax=False).select(logits, bias)
        assert scores.dtype == torch.float64
        assert not scores.requires_grad


def test_the_gradient_flows_through_the_weights_only():
    router, logits = with_bias(random_bias()), random_logits().requires_grad_()
    probs, chosen = route(router, logits)
    (grad,) = torch.autograd.grad(probs, logits, torch.randn(TOKENS, EXPERTS))
    assert (grad[~chosen] == 0).all()
    assert (grad[chosen] != 0).all()
    index = chosen.nonzero()[:, 1].reshape(TOKENS, TOPK)
    assert DecoupledScoring(pre_softmax=False).weigh(logits, index).requires_grad
    assert not router.expert_bias.requires_grad


def test_a_whole_router_trains_its_weight():
    torch.manual_seed(0)
    router = make_router()
    probs, chosen = router(torch.randn(5, 2, HIDDEN))
    assert probs.shape == chosen.shape == (10, EXPERTS)
    (probs * torch.randn(10, EXPERTS)).sum().backward()
    assert router.weight.grad.abs().sum() > 0


def test_the_scaling_factor_multiplies_the_weights():
    logits = random_logits()
    plain, _ = route(make_router(), logits)
    scaled, _ = route(make_router(moe_router_topk_scaling_factor=2.5), logits)
    assert_close(scaled, 2.5 * plain)


def test_group_limited_routing_keeps_to_the_best_groups():
    settings = {"moe_router_num_groups": 4, "moe_router_group_topk": 1, "moe_router_topk": 2}
    logits = random_logits()
    for router in (make_router(**settings), with_bias(0.0, **settings)):
        _, chosen = route(router, logits)
        assert (chosen.reshape(TOKENS, 4, 2).sum(-1) == 2).sum(-1).eq(1).all()


@pytest.mark.parametrize("policy", ["probs", "position"])
def test_an_expert_over_capacity_keeps_the_tokens_that_the_policy_says(policy):
    logits = random_logits()
    logits[:, 0] = 4 + torch.arange(TOKENS) % 5  # everybody's favourite
    router = make_router(moe_expert_capacity_factor=1.0, moe_token_drop_policy=policy)
    probs, chosen = route(router, logits)
    undropped, _ = route(make_router(), logits)
    capacity = TOKENS * TOPK // EXPERTS + 1
    assert chosen[:, 0].sum() == capacity
    assert (probs[~chosen] == 0).all()
    assert torch.equal(probs[chosen], undropped[chosen])
    heaviest = undropped[:, 0].topk(capacity).values.min()
    keeps_the_heaviest = bool((undropped[chosen[:, 0], 0] >= heaviest).all())
    assert keeps_the_heaviest == (policy == "probs")


def test_the_z_loss_reaches_the_logits_and_leaves_the_routing():
    logits = random_logits().requires_grad_()
    plain_probs, plain_map = route(make_router(), logits)
    router = make_router(moe_z_loss_coeff=0.1)
    router.set_layer_number(1)
    probs, chosen = route(router, logits)
    assert torch.equal(chosen, plain_map)
    assert torch.equal(probs, plain_probs)
    (plain_grad,) = torch.autograd.grad(plain_probs.sum(), logits)
    (grad,) = torch.autograd.grad(probs.sum(), logits)
    assert (grad - plain_grad).abs().max() > 1e-6


def test_tokens_are_counted_per_expert_for_the_bias_and_padding_is_not():
    router, logits = with_bias(0.0), random_logits()
    padding = torch.arange(TOKENS) % 3 == 0
    _, chosen = route(router, logits, padding_mask=padding.unsqueeze(1))
    assert torch.equal(router.local_tokens_per_expert, chosen[~padding].sum(0))
    route(router, logits)
    both = chosen[~padding].sum(0) + chosen.sum(0)
    assert torch.equal(router.local_tokens_per_expert, both)


def test_megatrons_router_cannot_count_beside_a_padding_mask():
    theirs = megatrons_router()
    with pytest.raises(RuntimeError, match="size of tensor"):
        theirs._apply_expert_bias(
            torch.ones(TOKENS, EXPERTS, dtype=torch.bool), torch.zeros(TOKENS, dtype=torch.bool)
        )
    # As many tokens as experts: no error, and tokens of the wrong experts are left out.
    padding = torch.arange(EXPERTS) == 0
    theirs._apply_expert_bias(torch.ones(EXPERTS, EXPERTS, dtype=torch.bool), padding)
    assert theirs.local_tokens_per_expert.tolist() == [0.0] + [float(EXPERTS)] * (EXPERTS - 1)


def test_evaluation_does_not_count():
    router = with_bias(0.0)
    with torch.no_grad():
        route(router, random_logits())
    assert router.local_tokens_per_expert.sum() == 0


@pytest.mark.parametrize("kind", ["aux_loss", "seq_aux_loss", "global_aux_loss"])
def test_a_balancing_loss_reaches_the_logits_and_leaves_the_routing(kind):
    logits = random_logits().requires_grad_()
    balanced = make_router(moe_router_load_balancing_type=kind, moe_aux_loss_coeff=0.1)
    balanced.set_layer_number(1)
    plain_probs, plain_map = route(make_router(), logits)
    probs, chosen = route(balanced, logits)
    assert torch.equal(chosen, plain_map)
    assert torch.equal(probs, plain_probs)
    (plain_grad,) = torch.autograd.grad(plain_probs.sum(), logits)
    (grad,) = torch.autograd.grad(probs.sum(), logits)
    assert (grad - plain_grad).abs().max() > 1e-6


def test_softmax_scoring_is_megatrons_router():
    logits = random_logits(dtype=torch.bfloat16)
    probs, chosen = route(make_router(grove_router_scoring="softmax"), logits)
    expected_probs, expected_map = topk_routing_with_score_function(logits, TOPK)
    assert torch.equal(chosen, expected_map)
    assert torch.equal(probs, expected_probs)


def test_large_logits_still_select_the_largest():
    # A sigmoid in fp32 is 1 for every one of these.
    logits = torch.arange(EXPERTS, dtype=torch.float32) * 0.5 + 18
    scoring = DecoupledScoring(pre_softmax=False)
    scores = scoring.select(logits.expand(TOKENS, -1), torch.zeros(EXPERTS))
    assert (scores.diff(dim=1) > 0).all()


def test_group_limited_selection_does_not_depend_on_whether_a_zero_bias_is_there():
    limits = {"moe_router_num_groups": 4, "moe_router_group_topk": 2}
    logits = random_logits() * 3
    _, chosen = route(make_router(**limits), logits)
    _, chosen_with = route(with_bias(torch.zeros(EXPERTS), **limits), logits)
    assert torch.equal(chosen, chosen_with)


def test_what_megatron_selects_by_quantiles_it_selects_here_too():
    """It asks what losses there are before its own __init__ has ended."""
    given = {
        "num_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "add_bias_linear": False,
        "num_moe_experts": 8,
        "moe_router_topk": 2,
        "moe_router_load_balancing_type": "quantile_balancing",
        "moe_token_dispatcher_type": "alltoall",
    }
    groups = ProcessGroupCollection.use_mpu_process_groups()
    ours = GroveRouter(GroveTransformerConfig(**given, grove_dispatch=True), groups)
    theirs = TopKRouter(TransformerConfig(**given), groups)
    logits = torch.randn(24, 1, 8, generator=torch.Generator().manual_seed(0))
    for mine, expected in zip(ours.routing(logits), theirs.routing(logits), strict=True):
        assert torch.equal(mine, expected)
