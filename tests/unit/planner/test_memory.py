from dataclasses import replace
from operator import mul
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches

from grove_megatron.model.parameters import total_parameters
from grove_megatron.planner.activations import (
    adjugate_activations,
    in_flight,
    layer_activations,
    stage_activations,
)
from grove_megatron.planner.inputs import Layout, Precision, Sizes
from grove_megatron.planner.memory import largest, stage_memory
from grove_megatron.planner.parameters import rank_parameters
from grove_megatron.planner.peak.in_flight import moments
from grove_megatron.planner.peak.layer_steps import attention
from grove_megatron.planner.peak.moe_steps import records
from grove_megatron.planner.peak.rank_sizes import RankSizes
from grove_megatron.planner.peak.steps import PARTS
from grove_megatron.planner.peak.trained_parts import ALL

from .models import GROVE_33B, QWEN3_30B, jobs, training


def job(**changes: object) -> Sizes:
    return replace(Sizes(model=GROVE_33B, layout=Layout(), training=training()), **changes)


def state(sizes: Sizes) -> float:
    """Bytes of weights, gradients and optimizer on the only stage."""
    (memory,) = stage_memory(sizes)
    return memory.weights + memory.gradients + memory.optimizer


def test_18_bytes_a_parameter():
    assert state(job()) == 18 * total_parameters(GROVE_33B).total


@pytest.mark.parametrize(
    ("precision", "each"),
    [
        (Precision(weight=4, gradient=4, main_weight=0, moments=8), 16),
        (Precision(gradient=2), 16),
        (Precision(moments=4), 14),
    ],
)
def test_bytes_of_other_precisions(precision, each):
    sizes = job(training=training(precision=precision))
    assert state(sizes) == each * total_parameters(GROVE_33B).total


def test_6_bytes_and_12_shared_by_the_ranks_with_the_same_weights():
    layout = Layout(expert=8, world=64)
    sizes = job(layout=layout, training=training(distributed_optimizer=True))
    (counts,) = rank_parameters(GROVE_33B, layout)
    experts = counts.experts + counts.adjugates
    # 64 ranks have the same dense weights, 8 the same experts.
    assert state(sizes) == counts.dense * (6 + 12 / 64) + experts * (6 + 12 / 8)


def test_two_instances_of_the_optimizer_each_hold_all_of_its_state():
    layout = Layout(world=8)
    one, two = (
        stage_memory(
            job(
                layout=layout,
                training=training(distributed_optimizer=True, optimizer_instances=instances),
            )
        )[0]
        for instances in (1, 2)
    )
    assert two.optimizer == 2 * one.optimizer


ADJUGATES = 2_415_919_104


def test_a_frozen_weight_is_2_bytes():
    (memory,) = stage_memory(job(training=training(train_only=("adjugates",))))
    assert memory.weights == 2 * 32_948_041_728
    assert (memory.gradients, memory.optimizer) == (4 * ADJUGATES, 12 * ADJUGATES)
    # A frozen matrix keeps no input: of QKV in every layer. Fused attention keeps its output.
    heads = 64 * 2 * 2048 * 48
    frozen, whole = (
        stage_memory(job(model=SMALL, training=training(grouped_experts=True, train_only=only)))
        for only in (("adjugates",), ())
    )
    assert whole[0].activations - frozen[0].activations == pytest.approx(heads, rel=1e-2)


@pytest.mark.parametrize(
    ("chosen", "gradients", "optimizer"),
    [
        # An eighth of them on a rank, their state over the 8 ranks that have the same.
        ("adjugates", 4 * 301_989_888, 12 * 37_748_736),
        # 48 x 128 x 2048 on every rank, their state over all 64.
        ("router", 4 * 12_582_912, 12 * 196_608),
        ("adjugates router", 4 * 314_572_800, 12 * 37_945_344),
    ],
)
def test_the_distributed_optimizer_divides_the_state_of_what_is_trained(
    chosen, gradients, optimizer
):
    only = training(distributed_optimizer=True, train_only=tuple(chosen.split()))
    (memory,) = stage_memory(job(layout=Layout(expert=8, world=64), training=only))
    assert memory.weights == 2 * 5_466_961_920
    assert (memory.gradients, memory.optimizer) == (gradients, optimizer)


@given(sizes=jobs())
def test_optimizer_state_is_divided_and_adds_up(sizes):
    shared = replace(sizes, training=replace(sizes.training, distributed_optimizer=True))
    for whole, part, counts in zip(
        stage_memory(sizes),
        stage_memory(shared),
        rank_parameters(sizes.model, sizes.layout),
        strict=True,
    ):
        assert whole.optimizer == 12 * counts.total
        assert (part.weights, part.gradients) == (whole.weights, whole.gradients)
        dense = 12 * counts.dense / sizes.layout.dense_copies
        experts = 12 * (counts.experts + counts.adjugates) / sizes.layout.expert_copies
        assert part.optimizer == pytest.approx(dense + experts, rel=1e-12)


@given(sizes=jobs())
def test_adjugates_only_add(sizes):
    plain = replace(sizes, model=replace(sizes.model, num_groups=0, adjugate_ffn_hidden_size=0))
    added = layer_activations(sizes, is_moe=True) - layer_activations(plain, is_moe=True)
    assert added == pytest.approx(adjugate_activations(sizes), rel=1e-9)
    assert added > 0
    assert layer_activations(sizes, is_moe=False) == layer_activations(plain, is_moe=False)


def test_what_the_adjugates_keep_of_a_row():
    tokens, groups, width, experts = 64, 7.779527559055118, 128, 128
    # h and its activation, in 16 bits, two positions and a weight; and what was selected.
    one_pass = job(training=training(grouped_experts=True))
    kept = tokens * (groups * (2 * 3 * width + 20) + experts)
    assert adjugate_activations(one_pass) == pytest.approx(kept, rel=1e-12)
    fewer = tokens * (4 * (2 * 3 * width + 20) + experts)
    assert adjugate_activations(one_pass, groups=4.0) == pytest.approx(fewer, rel=1e-12)
    # The row itself where it is a copy, with its positions; and those of what experts get.
    copies = tokens * (groups * (2 * 2048 + 16) + 8 * 16 + 8)
    assert adjugate_activations(job()) == pytest.approx(kept + copies, rel=1e-12)


# Few tokens meet a whole vocabulary, whose gradient would be the most there is.
SMALL = replace(GROVE_33B, vocab_size=64)
ROW = 64 * 2048 * 2
RECORDS = records(RankSizes(job()))
WHOLE = layer_activations(job(), is_moe=True)


def test_tensor_parallelism_divides_the_gradients_of_all_weights_of_attention():
    def made(tensor: int) -> float:
        layout = Layout(tensor=tensor, world=tensor, sequence_parallel=tensor > 1)
        live = []
        for fused in (False, True):
            sizes = job(layout=layout, training=training(fused_weight_gradients=fused))
            live.append(sum(step.live for step in attention(RankSizes(sizes), ALL)))
        return live[0] - live[1]

    model = GROVE_33B
    projections = 2 * model.query_size + 2 * model.key_size
    assert made(1) == pytest.approx(2 * model.hidden_size * projections)
    assert made(4) == pytest.approx(made(1) / 4)


def test_what_is_recomputed_is_not_kept():
    kept = {
        modules: stage_activations(
            job(model=SMALL, training=training(recompute=frozenset(modules.split())))
        )[0]
        for modules in ("", "layernorm", "moe_act", "moe", "full")
    }
    assert kept["full"] < kept["moe"] < kept["moe_act"] < kept[""]
    assert kept["layernorm"] < kept[""]


def test_full_recompute_keeps_one_row_a_token_and_layer():
    def of(layers: int) -> float:
        model = replace(SMALL, moe_layers=(True,) * layers)
        again = training(recompute=frozenset(["full"]))
        return stage_activations(job(model=model, training=again))[0]

    # And where the dispatcher sent it.
    assert of(9) - of(8) == pytest.approx(ROW + RECORDS, rel=1e-9)


def test_recompute_of_some_layers_keeps_the_others():
    some = training(recompute=frozenset(["full"]), recompute_layers=40)
    everything = training(recompute=frozenset(["full"]))
    none, part, full = (
        stage_activations(job(model=SMALL, training=t))[0] for t in (training(), some, everything)
    )
    assert full < part < none


def interleaved(layers: int | None, *, mtp: int = 0, **settings: Any) -> float:
    """Of the last of two stages with two chunks of three layers each."""
    again = training(recompute=frozenset(["full"]), recompute_layers=layers, **settings)
    model = replace(SMALL, moe_layers=(True,) * 12, mtp_depths=mtp, mtp_modules=mtp)
    layout = Layout(pipeline=2, virtual=2, world=2)
    return stage_activations(job(model=model, layout=layout, training=again))[-1]


def test_so_many_layers_of_every_chunk_are_recomputed():
    # One microbatch has passed both chunks.
    everything, unit = interleaved(None), ROW + RECORDS
    # The layer that is made again has room where those after it were; its input is kept.
    expected = 2 * (WHOLE - unit) - (WHOLE - ROW)
    assert interleaved(2) - everything == pytest.approx(expected, rel=1e-9)
    assert interleaved(1) - interleaved(2) == pytest.approx(2 * (WHOLE - unit), rel=1e-9)


@pytest.mark.parametrize("layers", [3, 4, 12])
def test_no_more_layers_are_recomputed_than_a_chunk_has(layers):
    assert interleaved(layers) == interleaved(None)


def test_a_unit_of_recompute_ends_with_its_chunk():
    one, two, most = (interleaved(None, recompute_unit=unit) for unit in (1, 2, 12))
    # 2 x 3 inputs, 2 x 2 of units of two layers and one, 2 x 1. While the first of two layers has
    # its gradients made, that of what both put out is there; the unit of one is done by then.
    assert two - one == pytest.approx(WHOLE - 2 * ROW - RECORDS, rel=1e-9)
    assert most - one == pytest.approx(2 * WHOLE - 3 * ROW, rel=1e-9)


def test_mtp_layers_are_recomputed_one_by_one_or_with_a_number_of_layers_not_at_all():
    # What an MTP layer keeps beside a layer does not depend on the recompute. Made again, it is
    # the whole layer that is there when its gradients are made; so is that which was kept.
    both = interleaved(None, mtp=1) - interleaved(None)
    none = interleaved(3, mtp=1) - interleaved(3)
    assert none - both == pytest.approx(-RECORDS, rel=1e-9)
    two = interleaved(None, mtp=2) - interleaved(None, mtp=1)
    kept = interleaved(3, mtp=2) - interleaved(3, mtp=1)
    assert kept - two == pytest.approx(WHOLE - ROW - RECORDS, rel=1e-9)


@pytest.mark.parametrize(
    ("pipeline", "virtual", "expected"),
    [(1, 1, [1]), (4, 1, [4, 3, 2, 1]), (4, 2, [(2 * 3 + 4 + 1) / 2, 4.5, 3.5, 2.5])],
)
def test_microbatches_in_flight(pipeline, virtual, expected):
    layout = Layout(pipeline=pipeline, virtual=virtual, world=pipeline)
    sizes = job(layout=layout, training=training(microbatches=16))
    found = [in_flight(sizes, stage) for stage in range(pipeline)]
    assert found == expected
    few = replace(sizes, training=training(microbatches=2))
    assert [in_flight(few, stage) for stage in range(pipeline)] == [min(2, n) for n in expected]


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize(
    ("pipeline", "virtual", "group"), [(2, 3, None), (2, 2, 2), (4, 2, 5), (3, 4, 7)]
)
def test_interleaved_stages_hold_one_more_than_megatrons_warm_up(
    pipeline, virtual, group, overlapped
):
    layout = Layout(pipeline=pipeline, virtual=virtual, chunk_microbatches=group, world=pipeline)
    sizes = job(layout=layout, training=training(microbatches=64, overlapped_experts=overlapped))
    for stage in range(pipeline):
        pp_group = SimpleNamespace(size=lambda: pipeline, rank=lambda stage=stage: stage)
        communicator: Any = SimpleNamespace(
            pp_group=pp_group, virtual_pipeline_model_parallel_size=virtual
        )
        _, _, warm_up, _ = get_pp_rank_microbatches(
            64, virtual, group or pipeline, False, overlapped, communicator
        )
        assert in_flight(sizes, stage) * virtual == pytest.approx(warm_up + 1, rel=1e-12)


def test_the_first_stage_in_flight_is_megatrons_interleaving_penalty():
    # 1 + (p - 1) / (p v) of its p microbatches, theoretical_memory_usage.py @ 0.19.2.
    layout = Layout(pipeline=4, virtual=3, world=4)
    sizes = job(layout=layout, training=training(microbatches=16))
    assert in_flight(sizes, 0) == pytest.approx((1 + 3 / 12) * 4)


def test_the_first_stage_holds_most_activations():
    layout = Layout(pipeline=4, world=4)
    memories = stage_memory(job(layout=layout, training=training(microbatches=8)))
    assert largest(memories) == 0
    assert memories[0].with_margin == pytest.approx(1.1 * memories[0].total)


def test_a_plain_model_is_planned_too():
    (memory,) = stage_memory(job(model=QWEN3_30B))
    assert memory.weights == 2 * 30_532_122_624


@given(sizes=jobs(), overlapped=st.booleans(), recompute=st.sampled_from(("", "moe", "full")))
def test_activations_are_the_sum_of_their_parts(sizes, overlapped, recompute):
    settings = replace(
        sizes.training,
        microbatches=5,
        overlapped_experts=overlapped,
        recompute=frozenset(recompute.split()),
    )
    for memory in stage_memory(replace(sizes, training=settings)):
        assert tuple(memory.activation_parts) == PARTS
        assert sum(memory.activation_parts.values()) == memory.activations
        assert min(memory.activation_parts.values()) >= -1e-6


def test_a_fuller_rank_has_more_rows_and_nothing_else():
    layout = Layout(expert=8, world=8)

    def parts(imbalance: float) -> dict[str, float]:
        chosen = training(imbalance=imbalance, grouped_experts=True)
        return stage_memory(job(model=SMALL, layout=layout, training=chosen))[0].activation_parts

    even, full = parts(1.0), parts(2.0)
    changed = {name for name in PARTS if even[name] != full[name]}
    assert changed == {"experts", "dispatcher"}
    assert full["experts"] > 1.6 * even["experts"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"imbalance": 0.0}, r"imbalance \(0.0\) is not above 0"),
        ({"imbalance": float("nan")}, r"imbalance \(nan\) is not above 0"),
        ({"expert_imbalance": 0.5}, r"expert_imbalance \(0.5\) is below 1"),
        ({"capacity_factor": -1.0}, r"capacity_factor \(-1.0\) is not above 0"),
    ],
)
def test_impossible_rows_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        training(**settings)


@pytest.mark.parametrize("alike", [(0, 0, 0), (0, 1, 1), (0, 1, 2)])
@pytest.mark.parametrize("overlapped", [False, True])
def test_no_moment_is_worse_than_those_that_are_looked_at(alike, overlapped):
    """Of chunks that are alike as said, with any sizes."""
    layout = Layout(pipeline=4, virtual=3, world=4)
    chosen = training(microbatches=10, overlapped_experts=overlapped)
    sizes = job(layout=layout, training=chosen)
    weights = [(1.0, 1.0, 1.0), (1.0, 5.0, 5.0), (9.0, 2.0, 2.0), (1.0, 7.0, 3.0)]
    for stage in range(4):
        every = moments(sizes, stage, (0, 1, 2))
        some = moments(sizes, stage, alike)
        assert len(some) <= len(every)
        for weight in weights:
            if any(weight[i] != weight[alike.index(alike[i])] for i in range(3)):
                continue
            for backward in range(3):
                assert _most(some, weight, alike, backward) == _most(every, weight, alike, backward)


def _most(found, weight, alike, backward):
    return max(
        sum(map(mul, moment.held, weight))
        for moment in found
        if alike[moment.backward] == alike[backward]
    )
