from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given

from grove_megatron.model.parameters import Counts, whole_model
from grove_megatron.model.subsets import SUBSETS
from grove_megatron.planner.inputs import Layout
from grove_megatron.planner.parameters import (
    rank_parameters,
    rank_trained,
    share,
    stage_weights,
    ways,
)
from grove_megatron.planner.pipeline import stages

from .models import GROVE_33B, jobs


@pytest.mark.parametrize(("ranks", "billions"), [(1, 32.95), (8, 5.467), (16, 3.504), (64, 2.032)])
def test_parameters_of_a_rank_by_expert_parallel_size(ranks, billions):
    (counts,) = rank_parameters(GROVE_33B, Layout(expert=ranks, world=64))
    # As many digits as are given.
    assert counts.total / 1e9 == pytest.approx(billions, abs=5e-3 if ranks == 1 else 5e-4)
    assert counts.adjugates == 2_415_919_104 // ranks


@given(job=jobs())
def test_what_the_ranks_hold_adds_up_to_the_model(job):
    model, layout = job.model, job.layout
    held = [weight for stage in stages(model, layout) for weight in stage_weights(model, stage)]
    assert not Counter(whole_model(model)) - Counter(held)
    for weight, _ in held:
        expert, tensor = ways(weight, layout)
        assert share(weight, model, layout) * expert * tensor == weight.numel(model.sizes)
    shares = sum(share(weight, model, layout) for weight, _ in held if not weight.buffer)
    assert sum(counts.total for counts in rank_parameters(model, layout)) == shares


@given(job=jobs())
def test_a_stage_repeats_only_an_embedding(job):
    held = Counter(
        w for one in stages(job.model, job.layout) for w in stage_weights(job.model, one)
    )
    repeats = held - Counter(whole_model(job.model))
    assert {weight.name for weight, _ in repeats} <= {
        "embedding.word_embeddings.weight",
        "embedding.position_embeddings.weight",
        "output_layer.weight",
    }
    if job.layout.pipeline == 1:
        assert not repeats


@given(job=jobs())
def test_every_part_is_trained_by_one_of_the_names(job):
    """But for what two names find: MTP layers, and norms among dense weights."""
    model, layout = job.model, job.layout
    everything = rank_parameters(model, layout)
    assert rank_trained(model, layout, ()) == rank_trained(model, layout, ["."]) == everything
    assert rank_trained(model, layout, [n for n in SUBSETS if n != "mtp"] + ["eh_proj"]) == (
        everything
    )
    alone = {name: rank_trained(model, layout, [name]) for name in ("experts", "adjugates")}
    for stage, counts in enumerate(everything):
        assert alone["experts"][stage] == Counts(experts=counts.experts)
        assert alone["adjugates"][stage] == Counts(adjugates=counts.adjugates)


@pytest.mark.parametrize(
    ("chosen", "trained"),
    [
        # 3 x 2048 x 128 each, 16 of 64 on a rank, in the 12 layers of a stage.
        (["adjugates"], [150_994_944] * 4),
        ([r"layers\.(0|47)\..*adjugate"], [12_582_912, 0, 0, 12_582_912]),
        # 3 x 2048 x 768, in all layers, and what of them the fullest rank has.
        (
            [r"\.experts\..*(linear_fc\d\.weight|local_experts\.)(31|32|33)(\D|$)"],
            [113_246_208] * 4,
        ),
        # Its rows of hidden size 2048 once, and on the last stage those of the output.
        (["embedding"], [311_164_928, 0, 0, 311_164_928]),
        (["router"], [3_145_728] * 4),
    ],
)
def test_what_is_trained_lies_where_its_layers_and_experts_do(chosen, trained):
    layout = Layout(expert=4, pipeline=4, world=16)
    assert [counts.total for counts in rank_trained(GROVE_33B, layout, chosen)] == trained


@given(job=jobs())
def test_groups_add_adjugates_and_nothing_else(job):
    plain = replace(job.model, num_groups=0, adjugate_ffn_hidden_size=0)
    for with_groups, without in zip(
        rank_parameters(job.model, job.layout), rank_parameters(plain, job.layout), strict=True
    ):
        assert without.adjugates == 0
        assert replace(with_groups, adjugates=0) == without


def test_a_width_that_does_not_divide_is_named():
    layout = Layout(tensor=3, world=3)
    message = r"width of embedding.word_embeddings.weight \(151936\) is not a multiple of t"
    with pytest.raises(ValueError, match=message):
        rank_parameters(GROVE_33B, layout)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"shared_expert_size": 15}, r"mlp.shared_experts.linear_fc1.weight \(15\)"),
        ({"ffn_hidden_size": 15, "moe_layers": (False, True)}, r"mlp.linear_fc1.weight \(15\)"),
        ({"moe_ffn_hidden_size": 15}, r"mlp.experts.experts.linear_fc1.weight \(15\)"),
        ({"adjugate_ffn_hidden_size": 15}, r"mlp.adjugate_experts.experts.linear_fc1.weight \(15"),
        ({"vocab_size": 15}, r"embedding.word_embeddings.weight \(15\)"),
        ({"head_dim": 15, "num_query_groups": 1, "num_attention_heads": 4}, r".*linear_qkv.weight"),
    ],
)
def test_it_is_the_width_that_divides_and_not_the_whole_matrix(changed, named):
    # The hidden size is even, so that every matrix has an even number of elements.
    model = replace(GROVE_33B, **({"num_attention_heads": 2, "num_query_groups": 2} | changed))
    tensor = 4 if "head_dim" in changed else 2
    layout = Layout(tensor=tensor, expert_tensor=tensor, world=tensor)
    with pytest.raises(ValueError, match=rf"width of {named}.* is not a multiple of tensor-par"):
        rank_parameters(model, layout)


def test_experts_that_do_not_divide_are_named():
    model = replace(GROVE_33B, num_experts=126, num_groups=63)
    with pytest.raises(ValueError, match=r"number of experts \(126\) is not a multiple of expert-"):
        rank_parameters(model, Layout(expert=4, world=4))


def test_ranks_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match=r"expert ranks parallel size \(8\) does not divide world"):
        Layout(expert=8, world=12)


def test_experts_are_divided_over_both_their_parallel_sizes():
    one, divided = (
        rank_parameters(GROVE_33B, Layout(expert=4, expert_tensor=tensor, world=8))[0]
        for tensor in (1, 2)
    )
    assert (one.experts, one.adjugates) == (2 * divided.experts, 2 * divided.adjugates)
    assert one.dense == divided.dense


@pytest.mark.parametrize(("mtp", "stage"), [(0, 1), (1, 0)])
def test_the_final_norm_is_the_outputs_or_with_mtp_the_last_layers(mtp, stage):
    letters = "E" + "t" * 47 + "|t|t" + "|" + "m" * mtp + "L"
    model = replace(GROVE_33B, moe_layers=(True,) * 49, mtp_depths=mtp, mtp_modules=mtp)
    layout = Layout(pipeline=2, world=2, custom=letters)
    name = "decoder.final_layernorm.weight"
    # Chunks: stage 0 has the first and third, so the last layer, stage 1 the others.
    held = [
        [weight.name for weight, _ in stage_weights(model, one)].count(name)
        for one in stages(model, layout)
    ]
    assert held == [int(rank == stage) for rank in range(2)]
