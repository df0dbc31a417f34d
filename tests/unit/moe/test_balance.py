from functools import partial

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import finalize_model_grads as megatrons_finalize
from megatron.core.distributed.finalize_model_grads import (
    _update_router_expert_bias,
    reset_model_temporary_tensors,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

from grove_megatron.config import GroveTransformerConfig
from grove_megatron.moe import balance
from tests.unit.moe.routers import (
    BIASED,
    EXPERTS,
    HIDDEN,
    SKEW,
    TOKENS,
    TOPK,
    grove_config,
    grove_router,
    megatrons_router,
    one_rank,
    route,
    settings,
    tokens,
)

DECAY = {"grove_bias_rate_decay_style": "linear", "grove_bias_rate_decay_iters": 4}
SIGN = {"grove_bias_update_rule": "sign"}


@pytest.fixture(scope="module", autouse=True)
def _one_rank(tmp_path_factory):
    with one_rank(tmp_path_factory.mktemp("store") / "file"):
        yield


class Model(torch.nn.Module):
    """What a model is to ``finalize_model_grads``: a config, and routers somewhere below."""

    def __init__(self, config: TransformerConfig, *routers: torch.nn.Module):
        super().__init__()
        self.config, self.layers = config, torch.nn.ModuleList(routers)


def ends_a_batch(model: list[Model], *rest, pg_collection=None, **named) -> None:
    """The part of Megatron's ``finalize_model_grads`` that is about routers."""
    config = model[0].config
    if config.moe_router_enable_expert_bias:
        _update_router_expert_bias(model, config)
    reset_model_temporary_tensors(config, model)


def grove_model(*, layers: int = 1, iteration: int = 0, **more) -> Model:
    """A model whose config has the update of its rule installed, in front of Megatron's."""
    config = grove_config(**(BIASED | more))
    model = Model(config, *(grove_router(config) for _ in range(layers)))
    config.finalize_model_grads_func = ends_a_batch
    balance.install(config, lambda: iteration)
    return model


def end_batch(model: Model) -> None:
    model.config.finalize_model_grads_func([model], None, pg_collection=None)


# -------------------------------------------------------------------------------------- the paper's


def test_skewed_experts_are_balanced_within_2000_steps_of_the_size_asked_for():
    model = grove_model()
    (router,) = model.layers
    rate = model.config.moe_router_bias_update_rate
    assert rate == 1e-3
    violations = []
    for hundred in range(20):
        loads = torch.zeros(EXPERTS, dtype=torch.int64)
        for step in range(100):
            before = router.expert_bias.double()
            route(router, tokens(100 * hundred + step, 128))
            loads += router.local_tokens_per_expert
            end_batch(model)
            moved = router.expert_bias.double() - before
            # Biases below 1 in fp32 are rounded by 3e-8 at most.
            assert abs(moved.square().mean().sqrt().item() - rate) <= 1e-7
        violations.append((loads.max() / loads.double().mean() - 1).item())
    assert violations[0] > 1
    assert violations[-1] < 0.1
    # Steps sum to 0; what is left of 16000 roundings of 3e-8 or less, of either sign, is a few
    # times sqrt(16000) * 2e-8 = 2.5e-6. By sign the sum would be off by about a step a batch.
    assert abs(router.expert_bias.double().sum().item()) < 1e-5


def test_all_layers_take_one_collective_of_integers(monkeypatch):
    model = grove_model(layers=3)
    summed = []
    original = dist.all_reduce

    def all_reduce(tensor, *rest, **named):
        summed.append((tensor.dtype, tuple(tensor.shape), named.get("group")))
        return original(tensor, *rest, **named)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    for layer, router in enumerate(model.layers):
        route(router, tokens(layer))
    end_batch(model)
    group = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
    assert summed == [(torch.int64, (3, EXPERTS), group)]
    assert len({tuple(router.expert_bias.tolist()) for router in model.layers}) == 3
    assert all(router.local_tokens_per_expert.sum() == 0 for router in model.layers)


def test_the_group_is_that_of_the_collection_where_one_is_given(monkeypatch):
    model = grove_model()
    groups = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group: groups.append(group))
    route(model.layers[0], tokens(0))
    collection = ProcessGroupCollection.use_mpu_process_groups()
    model.config.finalize_model_grads_func([model], None, pg_collection=collection)
    assert groups == [collection.tp_dp_cp]


def test_microbatches_are_one_batch():
    whole, parts = grove_model(), grove_model()
    logits = tokens(3)
    route(whole.layers[0], logits)
    for part in logits.split(5):
        route(parts.layers[0], part)
    end_batch(whole)
    end_batch(parts)
    assert whole.layers[0].expert_bias.any()
    assert torch.equal(whole.layers[0].expert_bias, parts.layers[0].expert_bias)


@pytest.mark.parametrize("how", ["frozen", "evaluation"])
def test_a_router_that_does_not_learn_keeps_its_bias(how):
    model = grove_model(layers=2)
    still, moving = model.layers
    still.expert_bias.copy_(SKEW / 10)
    for router in model.layers:
        route(router, tokens(0))
    if how == "frozen":
        still.frozen_expert_bias = True
    else:
        still.eval()
    end_batch(model)
    assert torch.equal(still.expert_bias, SKEW / 10)
    assert moving.expert_bias.any()
    assert still.local_tokens_per_expert.sum() == 0


def test_a_stage_without_routers_takes_no_part(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: pytest.fail("a collective"))
    model = grove_model(layers=0)
    end_batch(model)


# ---------------------------------------------------------------------------------- Megatron's rule


def test_the_sign_rule_is_megatrons_bit_for_bit():
    theirs = megatrons_router()
    config = grove_config(**BIASED, **SIGN)
    ours = grove_router(config)
    balance.install(config)
    assert config.finalize_model_grads_func is None
    for batch in range(5):
        _, chosen = route(ours, tokens(batch))
        theirs.local_tokens_per_expert += chosen.sum(0)
        for router in (ours, theirs):
            ends_a_batch([Model(router.config, router)])
        assert ours.expert_bias.unique().numel() > 1
        assert torch.equal(ours.expert_bias, theirs.expert_bias)
        assert ours.local_tokens_per_expert.sum() == 0


def test_softmax_scoring_keeps_megatrons_rule():
    config = grove_config(**BIASED, grove_router_scoring="softmax")
    balance.install(config)
    assert config.finalize_model_grads_func is None
    router = grove_router(config)
    route(router, tokens(0))
    ends_a_batch([Model(config, router)])
    assert set(router.expert_bias.abs().tolist()) <= {0.0, torch.tensor(1e-3).item()}


@pytest.mark.parametrize("scoring", ["grove", "softmax"])
def test_the_sign_rule_follows_the_schedule(scoring):
    rule = {**DECAY, **SIGN} if scoring == "grove" else DECAY
    for iteration, rate in enumerate([1e-3, 7.5e-4, 5e-4, 2.5e-4, 0.0, 0.0]):
        model = grove_model(iteration=iteration, grove_router_scoring=scoring, **rule)
        (router,) = model.layers
        route(router, tokens(0))
        end_batch(model)
        assert router.expert_bias.abs().max().item() == pytest.approx(rate)
        assert model.config.moe_router_bias_update_rate == 1e-3


# ----------------------------------------------------------------------------------------- schedule


def test_the_rms_of_a_step_follows_the_schedule():
    for iteration, rate in enumerate([1e-3, 7.5e-4, 5e-4, 2.5e-4, 0.0, 0.0]):
        model = grove_model(iteration=iteration, **DECAY)
        (router,) = model.layers
        route(router, tokens(0))
        end_batch(model)
        assert router.expert_bias.square().mean().sqrt().item() == pytest.approx(rate)


def test_a_rate_that_decays_needs_to_know_the_iteration():
    with pytest.raises(ValueError, match=r"decay-style \(linear\) needs iterations_done \(None\)"):
        balance.install(grove_config(**BIASED, **DECAY))


def test_a_constant_rate_asks_for_no_iteration():
    model = grove_model()
    balance.install(model.config, lambda: pytest.fail("asked"))
    end_batch(model)


def test_the_iteration_is_that_of_megatrons_loop(monkeypatch):
    from argparse import Namespace

    from grove_megatron.training import builder

    monkeypatch.setattr(builder, "get_args", lambda: Namespace(curr_iteration=7))
    assert builder._iterations_done() == 7
    monkeypatch.setattr(builder, "get_args", Namespace)
    with pytest.raises(ValueError, match=r"needs args\.curr_iteration \(None\)"):
        builder._iterations_done()


# ----------------------------------------------------------------------- the function of the config


def test_what_was_there_is_called_as_megatron_calls_it():
    calls = []
    config = grove_config(**BIASED)
    users = lambda *rest, **named: calls.append((rest, named))  # noqa: E731
    config.finalize_model_grads_func = users
    balance.install(config)
    balance.install(config)  # Again: still one deep, or the biases would be moved twice.
    assert config.finalize_model_grads_func.keywords["then"] is users
    model = [Model(config)]
    collection = ProcessGroupCollection.use_mpu_process_groups()
    config.finalize_model_grads_func(model, 5, pg_collection=collection, force_all_reduce=True)
    assert calls == [((model, 5), {"pg_collection": collection, "force_all_reduce": True})]


def test_where_nothing_was_there_megatrons_own_is_called():
    config = grove_config(**BIASED)
    balance.install(config)
    assert config.finalize_model_grads_func.keywords["then"] is megatrons_finalize


@pytest.mark.parametrize("more", [{}, {"moe_router_enable_expert_bias": False}])
def test_a_config_without_a_bias_or_groups_is_left_alone(more):
    config = grove_config(**more) if more else GroveTransformerConfig(**settings(**BIASED))
    balance.install(config)
    assert config.finalize_model_grads_func is None


@pytest.mark.parametrize("more", [{}, {**DECAY, **SIGN}], ids=["rms", "decaying sign"])
@pytest.mark.parametrize("present", [megatrons_finalize, partial(megatrons_finalize), None])
def test_a_loop_that_would_update_by_sign_alone_is_found_out(more, present):
    model = grove_model(**more)
    (router,) = model.layers
    # As Megatron-Bridge does after it has built a model; or a loop that calls Megatron itself.
    model.config.finalize_model_grads_func = present
    ends_a_batch([model])  # Nothing counted, nothing moved.
    assert not router.expert_bias.any()
    route(router, tokens(0))
    with pytest.raises(ValueError, match=r"are not applied by finalize_model_grads_func \("):
        ends_a_batch([model])
    router.frozen_expert_bias = True
    ends_a_batch([model])
    assert not router.expert_bias.any()


def test_the_rate_comes_back_where_megatrons_function_fails():
    model = grove_model(iteration=2, **DECAY, **SIGN)

    def fail(*_, **__):
        assert model.config.moe_router_bias_update_rate == 5e-4
        raise RuntimeError("no")

    model.config.finalize_model_grads_func.keywords["then"] = fail
    with pytest.raises(RuntimeError, match="no"):
        end_batch(model)
    assert model.config.moe_router_bias_update_rate == 1e-3


# ---------------------------------------------------------------------------------- what is counted


def test_experts_count_the_tokens_that_chose_them_and_not_those_they_could_keep():
    capacity = {"moe_expert_capacity_factor": 1.0}
    logits = tokens(0)
    _, chosen = route(grove_router(), logits)
    ours = grove_model(**capacity)
    (router,) = ours.layers
    _, kept = route(router, logits)
    assert kept.sum() < chosen.sum()
    assert torch.equal(router.local_tokens_per_expert, chosen.sum(0))
    # Megatron counts after padding every expert to its capacity: all alike, and no bias moves.
    theirs = megatrons_router(**capacity, moe_pad_expert_input_to_capacity=True)
    route(theirs, logits)
    assert theirs.local_tokens_per_expert.unique().numel() == 1
    ends_a_batch([Model(theirs.config, theirs)])
    assert not theirs.expert_bias.any()
    # Refused at start; the router would count right with it.
    ours.config.moe_pad_expert_input_to_capacity = True
    route(router, logits)
    assert torch.equal(router.local_tokens_per_expert, 2 * chosen.sum(0))
    end_batch(ours)
    assert router.expert_bias.any()


def test_counts_are_exact_in_a_model_of_16_bits():
    ours, theirs = grove_router().bfloat16(), megatrons_router().bfloat16()
    everybody = torch.ones(301, EXPERTS, dtype=torch.bool)
    for router in (ours, theirs):
        for _ in range(3):
            router._apply_expert_bias(everybody)
    assert ours.local_tokens_per_expert.tolist() == [903] * EXPERTS
    # In bf16, whose numbers above 512 are 4 apart.
    assert theirs.local_tokens_per_expert.dtype == torch.bfloat16
    assert theirs.local_tokens_per_expert.tolist() != [903] * EXPERTS


def test_evaluation_counts_nothing_even_with_gradients():
    router = grove_router().eval()
    route(router, tokens(0))
    assert router.local_tokens_per_expert.sum() == 0
    assert not router.counts_are_new


def test_without_gradients_nothing_is_counted():
    router = grove_router()
    with torch.no_grad():
        route(router, tokens(0))
    assert router.local_tokens_per_expert.sum() == 0
    # Else a loop that updates by sign alone would be blamed for a batch that was none.
    assert not router.counts_are_new


def test_a_recomputed_forward_is_counted_once():
    router = grove_router()
    logits = tokens(0).requires_grad_()
    probs = tensor_parallel.checkpoint(lambda x: route(router, x)[0], False, logits)
    assert router.local_tokens_per_expert.sum() == 0
    probs.sum().backward()
    assert router.local_tokens_per_expert.sum() == TOKENS * TOPK


def test_counts_are_no_part_of_a_checkpoint_and_biases_are():
    assert {name for name in grove_router().state_dict() if "expert" in name} == {"expert_bias"}


def test_jitter_ends_with_training():
    jitter = {"moe_input_jitter_eps": 0.3}
    x = torch.randn(5, 1, HIDDEN)
    for router, jitters_in_evaluation in (
        (grove_router(**jitter), False),
        (megatrons_router(**jitter), True),  # upstream
    ):
        assert not torch.equal(router.apply_input_jitter(x), x)
        router.eval()
        assert torch.equal(router.apply_input_jitter(x), x) is not jitters_in_evaluation
