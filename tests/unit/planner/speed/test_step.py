from collections.abc import Iterator
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings

from grove_megatron.planner.flops import flops_per_token
from grove_megatron.planner.inputs import Layout, Sizes, Training
from grove_megatron.planner.memory import stage_memory
from grove_megatron.planner.speed import products
from grove_megatron.planner.speed.cluster import Cluster, Link
from grove_megatron.planner.speed.step import (
    PARTS,
    step,
    tokens_per_second,
    utilisation,
    with_slack,
)
from grove_megatron.planner.speed.step import _stages as stages_of
from grove_megatron.planner.speed.work import _KERNELS, _OF_KIND, Work

from ..latent_models import DEEPSEEK_V3
from ..models import GROVE_33B, QWEN3_30B, jobs
from .machines_here import ROUND, cluster

FREE = Link(rate=inf, latency=0.0)
RATE = 5e14


@pytest.fixture(scope="module")
def only_products() -> Iterator[Cluster]:
    """GPUs on which nothing but products takes time, all of them at one rate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_BEGUN", 0)
        yield cluster(
            nodes=64,
            achieved=RATE,
            grouped=RATE,
            attention=(2 * RATE, 2 * RATE),
            bandwidth=inf,
            near=FREE,
            far=FREE,
        )


def sizes(layout: Layout | None = None, model=GROVE_33B, **training: object) -> Sizes:
    given = {"sequence_length": 4096, "distributed_optimizer": True} | training
    return Sizes(model=model, layout=layout or Layout(), training=Training(**given))


@given(job=jobs())
@settings(max_examples=60, deadline=None)
def test_all_ranks_together_compute_the_models_flops(only_products, job):
    work = Work(job, only_products)
    by_part: dict[str, float] = {}
    for stage in stages_of(work):
        for way in (stage.forward, stage.backward):
            for part, value in way.items():
                by_part[part] = by_part.get(part, 0.0) + value
    ranks = job.layout.world / job.layout.pipeline
    tokens = job.layout.data * job.training.micro_batch * job.training.sequence_length
    attention = by_part.pop("attention")
    counted = sum(by_part.values()) * ranks * RATE
    # Megatron counts the backward pass of attention as two forward ones; a fused one computes the
    # scores once more: 7 products in place of 6.
    of_pairs = attention * ranks * RATE * 6 / 7
    # It also counts the norms of an MTP layer.
    norms = 6 * 3 * job.model.hidden_size * job.model.mtp_depths
    flops = (flops_per_token(job.model, job.training.sequence_length) - norms) * tokens
    assert counted + of_pairs == pytest.approx(flops, rel=1e-9)


def test_a_pipeline_takes_its_microbatches_and_fills_once(only_products):
    def seconds(virtual: int, microbatches: int) -> float:
        layout = Layout(pipeline=4, virtual=virtual, world=4)
        job = sizes(layout, replace(QWEN3_30B, vocab_size=0), microbatches=microbatches)
        return step(job, only_products).total

    one = seconds(1, 8) - seconds(1, 7)
    assert seconds(1, 8) == pytest.approx(one * (8 + 3))
    assert seconds(3, 8) == pytest.approx(one * (8 + 3 / 3))


def test_the_stage_with_the_logits_is_the_slowest_and_others_fill_less(only_products):
    layout = Layout(pipeline=4, world=4)
    with_logits = step(sizes(layout, QWEN3_30B, microbatches=8), only_products)
    without = step(sizes(layout, replace(QWEN3_30B, vocab_size=0), microbatches=8), only_products)
    assert with_logits.total > without.total
    assert with_logits.seconds["bubble"] == pytest.approx(without.seconds["bubble"])


@pytest.mark.parametrize("full", [True, False])
def test_full_recompute_takes_another_forward_pass_of_its_layers(only_products, full):
    plain = sizes(model=replace(QWEN3_30B, vocab_size=0))
    counted = replace(
        plain.training,
        recompute=frozenset({"full"}),
        recompute_layers=None if full else 12,
    )
    before, after = (
        step(plain, only_products),
        step(replace(plain, training=counted), only_products),
    )
    forward = sum(stages_of(Work(plain, only_products))[0].forward.values())
    assert after.total - before.total == pytest.approx(forward * (1 if full else 12 / 48))
    assert after.seconds["recompute"] == pytest.approx(after.total - before.total)


def test_selective_recompute_of_experts_takes_their_forward_pass():
    plain = sizes()
    again = replace(plain.training, recompute=frozenset({"moe"}))
    added = step(replace(plain, training=again), cluster()).seconds["recompute"]
    experts = sum(Work(plain, cluster()).moe().forward.values())
    assert added == pytest.approx(48 * experts)


def ep(expert: int, **layout: object) -> Layout:
    return Layout(expert=expert, world=expert, **layout)


def test_dispatch_takes_what_its_rows_take():
    taken = step(sizes(ep(8)), cluster()).seconds["dispatch"]
    # 5.34 rows a token, an eighth of which stays; there and back, forward and backward, 48 layers.
    rows = 5.342 * 7 / 8 * 4096
    assert taken == pytest.approx(4 * 48 * rows * 2048 * 2 / ROUND.near.rate, rel=1e-3)


def test_over_nodes_hierarchical_sends_less_and_stock_more():
    nodes = cluster(nodes=4)
    flat, stock, hierarchical, kernel = (
        step(sizes(ep(32, **how)), nodes).seconds["dispatch"]
        for how in (
            {},
            {"row_per_expert": True},
            {"hierarchical": True},
            {"hierarchical": True, "fused": True},
        )
    )
    assert kernel < hierarchical < flat < stock
    # To other nodes: each of them once where hierarchical.
    assert kernel == pytest.approx(
        4 * 48 * 4096 * 4096 * 4 * (1 - 0.75**8) * 3 / 4 / ROUND.far.rate, rel=0.03
    )


def test_more_rows_on_one_rank_take_longer():
    even = step(sizes(ep(8)), cluster())
    uneven = step(sizes(ep(8), imbalance=1.4), cluster())
    assert uneven.seconds["dispatch"] == pytest.approx(1.4 * even.seconds["dispatch"])
    # Weights are read once, and more rows are summed up at a better rate.
    assert 1.2 < uneven.seconds["experts"] / even.seconds["experts"] < 1.4
    assert uneven.seconds["attention"] == even.seconds["attention"]


def test_no_rank_has_more_than_all_tokens_and_one_that_has_all_experts_the_mean():
    most, alone = (step(sizes(ep(ranks), imbalance=100.0), cluster()) for ranks in (8, 1))
    # Of 8 experts a token can have all on one rank: 8 times the mean of pairs, but one row.
    even = step(sizes(ep(8)), cluster()).seconds["dispatch"]
    assert most.seconds["dispatch"] == pytest.approx(even * 8 / 5.342, rel=1e-3)
    assert alone.seconds == step(sizes(ep(1)), cluster()).seconds


@pytest.mark.parametrize(("padded", "times"), [(True, 2.0), (False, 1.2)])
def test_capacity_pads_what_is_computed_and_cuts_what_is_uneven(padded, times):
    asked = {"capacity_factor": 2.0 if padded else 1.2, "imbalance": 1.5}
    capped = step(sizes(ep(8), padded_to_capacity=padded, **asked), cluster()).seconds["experts"]
    plain = step(sizes(ep(8), imbalance=times), cluster()).seconds["experts"]
    assert capped == pytest.approx(plain)


def test_without_the_distributed_optimizer_all_of_the_reduction_hides():
    layout = Layout(world=8)
    job = sizes(layout, distributed_optimizer=False, overlapped_gradients=True)
    assert "gradients" not in step(job, cluster(near=FREE)).seconds
    slow = sizes(layout, distributed_optimizer=False)
    assert step(slow, cluster()).seconds["gradients"] > 0


def test_context_parallelism_by_heads_sends_queries_and_outputs_too_and_a_ring_hides():
    layout = Layout(context=4, world=4)
    ring = step(sizes(layout), cluster()).seconds
    assert "context" not in ring
    taken = step(sizes(layout, context_by_heads=True), cluster()).seconds["context"]
    width = 2 * GROVE_33B.query_size + 2 * GROVE_33B.key_size
    assert taken == pytest.approx(2 * 48 * 1024 * width * 2 * 3 / 4 / ROUND.near.rate)


def test_latent_attention_gathers_what_is_compressed():
    layout = Layout(tensor=8, world=8, sequence_parallel=True)
    model = replace(DEEPSEEK_V3, moe_layers=(False,), mtp_modules=0)
    taken = step(sizes(layout, model), cluster()).seconds["tensor"]
    narrow, wide = 1536 + 512 + 64, 7168
    # Gathered three times, scattered twice, of which one each is as wide as hidden states; and the
    # dense FFN.
    attention = 3 * narrow + 2 * wide
    bytes_ = 4096 * 2 * 7 / 8 * (attention + 5 * wide)
    assert taken == pytest.approx(bytes_ / ROUND.near.rate)


def test_recompute_of_the_up_projection_takes_less_than_attention():
    model = replace(DEEPSEEK_V3, moe_layers=(False,) * 2)
    again = sizes(model=model, recompute=frozenset({"mla_up_proj"}))
    work = Work(again, cluster())
    taken = step(again, cluster()).seconds["recompute"]
    assert 0 < taken < 2 * sum(work.attention().forward.values()) / 2


def test_an_overlapped_exchange_costs_the_processors_it_takes():
    plain = step(sizes(ep(8)), cluster())
    beside = step(sizes(ep(8), overlapped_experts=True), cluster())
    assert beside.seconds["dispatch"] == pytest.approx(plain.seconds["dispatch"] * ROUND.occupied)


def test_graphs_shorten_the_gaps_and_free_the_host():
    slow = cluster(launch=1e-5, graphed=1e-6, host=1e-3)
    eager, covered = (
        step(sizes(graphed=frozenset(names)), slow)
        for names in ((), ("attn", "moe", "moe_router", "moe_preprocess"))
    )
    assert eager.seconds["host"] > 0
    assert "host" not in covered.seconds
    assert covered.seconds["starts"] == pytest.approx(eager.seconds["starts"] / 10)


def test_gradients_hide_behind_the_backward_pass_where_they_may():
    layout = Layout(world=8)
    plain = step(sizes(layout), cluster())
    hidden = step(
        sizes(layout, overlapped_gradients=True, overlapped_parameters=True), cluster(near=FREE)
    )
    assert plain.seconds["gradients"] > 0
    assert "gradients" not in hidden.seconds


def test_the_optimizers_state_is_divided_by_the_distributed_optimizer():
    whole, divided = (
        step(sizes(Layout(world=8), distributed_optimizer=is_so), cluster()).seconds["optimizer"]
        for is_so in (False, True)
    )
    parameters = 32_948_041_728
    own = 2 * 12 + 8
    assert whole == pytest.approx(parameters * (own + 8) / ROUND.bandwidth)
    assert divided == pytest.approx(parameters * (own / 8 + 8) / ROUND.bandwidth)


def test_tensor_parallelism_exchanges_hidden_states_around_every_block():
    layout = Layout(tensor=8, world=8, sequence_parallel=True)
    taken = step(sizes(layout, QWEN3_30B), cluster()).seconds["tensor"]
    # Five collectives of a layer's attention; its experts are apart.
    assert taken == pytest.approx(48 * 5 * 4096 * 2048 * 2 * 7 / 8 / ROUND.near.rate)


def test_parts_are_those_that_have_words_and_add_up():
    found = step(sizes(ep(8)), cluster(launch=1e-6))
    assert set(found.parts()) <= set(PARTS)
    assert sum(found.parts().values()) == pytest.approx(found.total)
    assert found.bottleneck.startswith(PARTS[max(found.seconds, key=found.seconds.get)])


def test_slack_is_a_part_of_its_own():
    job = sizes(ep(8))
    plain, slack = step(job, cluster()), step(job, with_slack(cluster(), 1.1))
    assert slack.total == pytest.approx(1.1 * plain.total)
    assert slack.seconds["other"] == pytest.approx(0.1 * plain.total)


def test_rates_are_of_all_tokens_and_utilisation_of_the_models_flops():
    job = sizes(Layout(world=4), micro_batch=2, microbatches=3)
    assert tokens_per_second(job, 2.0) == 4 * 2 * 3 * 4096 / 2.0
    flops = flops_per_token(GROVE_33B, 4096) * 2 * 3 * 4096 / 2.0
    assert utilisation(job, cluster(), 2.0) == pytest.approx(flops / 1e15)


def test_a_plan_of_memory_and_of_time_is_of_the_same_stages():
    layout = Layout(pipeline=4, world=4)
    assert len(stage_memory(sizes(layout))) == len(stages_of(Work(sizes(layout), cluster())))


def test_positions_and_norms_of_queries_and_keys_are_read_and_written():
    work = Work(sizes(), cluster())
    moved = 4096 * (GROVE_33B.query_size + GROVE_33B.key_size) * 2 / ROUND.bandwidth
    both = work.attention()
    # Each twice, and half as often again backward.
    assert both.forward["pointwise"] == pytest.approx(4 * moved)
    assert both.backward["pointwise"] == pytest.approx(6 * moved)


def test_a_ring_that_attention_does_not_hide_is_as_long_as_its_slowest_link():
    job = sizes(Layout(context=16, world=16))
    nodes = cluster(nodes=2, attention=(inf, inf))
    ring = 15 * 256 * 2 * GROVE_33B.key_size * 2 / ROUND.far.rate
    assert step(job, nodes).seconds["context"] == pytest.approx(48 * 3 * ring)


def test_two_hops_are_by_node_where_nodes_are_joined():
    rack = cluster(nodes=8, per_node=4, domain=72)
    flat, hierarchical = (
        step(sizes(ep(32, hierarchical=is_so)), rack).seconds["dispatch"] for is_so in (False, True)
    )
    # 8 nodes of 4, all near: 5.34 rows to nodes, and 7.36 from there to ranks.
    rows = 5.342 * 7 / 8 + 7.361 * 3 / 4
    assert hierarchical == pytest.approx(4 * 48 * 4096 * rows * 4096 / ROUND.near.rate, rel=1e-3)
    assert flat < hierarchical


def test_a_layer_takes_what_its_host_takes_at_least():
    slow = Work(sizes(), cluster(host=1.0))
    layer = slow.layer(True)
    counts = [sum(kernels) for kernels in zip(*(_KERNELS[k] for k in _OF_KIND[True]), strict=True)]
    assert sum(layer.forward.values()) == pytest.approx(counts[0])
    assert sum(layer.backward.values()) == pytest.approx(counts[1])


def test_what_of_a_reduction_is_longer_than_a_backward_pass_is_seen():
    layout = Layout(world=8)
    wire = cluster(near=Link(rate=1e9, latency=0.0))
    parameters = 32_948_041_728
    whole = 7 / 8 * parameters * (4 + 2) / 1e9
    assert step(sizes(layout), wire).seconds["gradients"] == pytest.approx(whole)
    backward = sum(stages_of(Work(sizes(layout), wire))[0].backward.values())
    hidden = step(sizes(layout, overlapped_gradients=True), wire).seconds["gradients"]
    assert hidden == pytest.approx(whole - backward)
    # Gradients both ways.
    summed = step(sizes(layout, distributed_optimizer=False), wire).seconds["gradients"]
    assert summed == pytest.approx(7 / 8 * parameters * 8 / 1e9)
