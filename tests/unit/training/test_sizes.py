import copy
from dataclasses import replace

import pytest
import torch

from grove_megatron.planner.inputs import Layout, Precision
from grove_megatron.training.sizes import sizes_of
from grove_megatron.training.vocabulary import Vocabulary

from .command_lines import parsed, validated


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--bf16",
        "--bf16 --grad-reduce-in-bf16 --optimizer sgd",
        "--fp16 --initial-loss-scale 4096 --use-distributed-optimizer",
        "--num-layers 8 --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 2",
        "--num-layers 8 --pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 "
        "--microbatch-group-size-per-virtual-pipeline-stage 4",
        "--num-layers 3 --pipeline-model-parallel-size 2 --pipeline-model-parallel-layout Et|ttL",
        "--num-layers 8 --pipeline-model-parallel-size 2 --pipeline-model-parallel-layout "
        "Et|(tt|)*3,tL|",
        "--num-layers 6 --pipeline-model-parallel-size 2 --pipeline-model-parallel-layout "
        "Et|t*3|t||tL|",
        "--tensor-model-parallel-size 2 --sequence-parallel --expert-model-parallel-size 4",
        "--moe-layer-freq [0,1] --mtp-num-layers 1 --position-embedding-type rope",
        "--group-query-attention --num-query-groups 1 --global-batch-size 32",
        "--grove-train-only adjugates router",
        "--recompute-granularity selective --recompute-modules moe",
        "--recompute-granularity full --recompute-method block --recompute-num-layers 1",
    ],
)
def test_sizes_are_the_same_before_and_after_megatrons_validation(flags):
    args = parsed(flags, ranks=8)
    sizes = sizes_of(args, 8)
    assert sizes_of(validated(args)) == sizes
    assert sizes.layout.world == 8


@pytest.mark.parametrize(
    ("layout", "pipeline", "chunks"),
    [
        ("Ettt|tL", 2, 1),
        ("Et|t*3|t|L", 2, 2),
        ("Et|(t|)*4L", 2, 3),
        ("Et|(t|)*4L", 3, 2),
        ("E|t,t|(|)*3,tt|L", 7, 1),
    ],
)
def test_a_layout_in_letters_says_how_many_chunks_a_stage_has(layout, pipeline, chunks):
    flags = f"--pipeline-model-parallel-size {pipeline} --pipeline-model-parallel-layout {layout}"
    assert sizes_of(parsed(flags, ranks=pipeline)).layout.virtual == chunks


def test_what_is_trained_is_read_from_its_flag():
    assert sizes_of(parsed()).training.train_only == ()
    chosen = parsed("--grove-train-only adjugates router")
    assert sizes_of(chosen).training.train_only == ("adjugates", "router")


def test_what_a_layer_keeps_is_read_from_its_flags():
    training = sizes_of(parsed()).training
    assert (training.capacity_factor, training.padded_to_capacity) == (None, False)
    given = sizes_of(
        parsed(
            "--moe-expert-capacity-factor 1.5 --moe-pad-expert-input-to-capacity "
            "--attention-dropout 0 --hidden-dropout 0 --transformer-impl transformer_engine"
        )
    ).training
    assert (given.capacity_factor, given.padded_to_capacity) == (1.5, True)
    assert (given.dropout, given.attention_dropout, given.local) == (False, False, False)
    local = sizes_of(
        parsed(
            "--attention-dropout 0.1 --no-bias-dropout-fusion --transformer-impl local "
            "--no-persist-layer-norm"
        )
    ).training
    assert local.attention_dropout
    assert local.local
    assert (local.fused_dropout, local.fused_norms) == (False, False)


def test_the_schedule_is_read_from_its_flags():
    sizes = sizes_of(parsed())
    assert sizes.layout.chunk_microbatches is None
    assert not sizes.training.overlapped_experts
    given = sizes_of(
        parsed(
            "--microbatch-group-size-per-virtual-pipeline-stage 5 "
            "--overlap-moe-expert-parallel-comm"
        )
    )
    assert given.layout.chunk_microbatches == 5
    assert given.training.overlapped_experts


def test_a_model_is_read_from_its_flags():
    model = sizes_of(parsed("--moe-layer-freq 2 --num-layers 4")).model
    assert model.moe_layers == (True, False, True, False)
    assert (model.hidden_size, model.head_dim, model.num_query_groups) == (16, 8, 2)
    assert (model.num_experts, model.topk, model.num_groups) == (8, 2, 4)
    assert (model.moe_ffn_hidden_size, model.adjugate_ffn_hidden_size) == (0, 8)
    # 96 tokens in multiples of 128.
    assert (model.vocab_size, model.tied_embeddings) == (128, True)


def test_experts_without_a_width_have_that_of_dense_layers():
    model = sizes_of(parsed("--ffn-hidden-size 40")).model
    assert (model.ffn_hidden_size, model.moe_ffn_hidden_size) == (40, 40)


@pytest.mark.parametrize(("size", "ranks", "rows"), [(1, 1, 128), (2, 2, 256)])
def test_the_vocabulary_is_padded_for_every_tensor_parallel_rank(size, ranks, rows):
    flags = f"--tensor-model-parallel-size {size} --sequence-parallel"
    assert sizes_of(parsed(flags), ranks).model.vocab_size == rows


def test_without_groups_a_plain_model_is_planned():
    model = sizes_of(parsed(plain=True)).model
    assert (model.num_experts, model.num_groups, model.adjugate_ffn_hidden_size) == (8, 0, 0)


def test_the_world_is_the_given_one():
    args = parsed("--expert-model-parallel-size 4 --global-batch-size 32")
    sizes = sizes_of(args, 8)
    assert sizes.layout == Layout(expert=4, world=8)
    assert sizes.training.microbatches == 4


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("", Precision(weight=4, gradient=4, main_weight=0, moments=8)),
        ("--bf16", Precision()),
        ("--bf16 --grad-reduce-in-bf16", Precision(gradient=2)),
        ("--fp16", Precision(gradient=2)),
        ("--fp16 --accumulate-allreduce-grads-in-fp32", Precision()),
        ("--bf16 --optimizer sgd", Precision(moments=4)),
        ("--bf16 --optimizer sgd --sgd-momentum 0", Precision(moments=0)),
        (
            "--bf16 --use-distributed-optimizer --use-precision-aware-optimizer --main-grads-dtype "
            "bf16 --main-params-dtype fp16 --exp-avg-dtype bf16 --exp-avg-sq-dtype fp8",
            Precision(weight=2, gradient=2, main_weight=2, moments=3),
        ),
    ],
)
def test_bytes_of_a_parameter(flags, precision):
    assert sizes_of(parsed(flags)).training.precision == precision


def test_dtypes_of_a_validated_namespace_are_read_as_well():
    args = parsed("--bf16")
    args.exp_avg_dtype, args.exp_avg_sq_dtype = torch.bfloat16, torch.float16
    assert sizes_of(args).training.precision == Precision(moments=4)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--moe-latent-size 8", r"--moe-latent-size \(8\)"),
        ("--use-torch-fsdp2", r"--use-torch-fsdp2 \(True\)"),
        ("--hybrid-layer-pattern MEME", r"--hybrid-layer-pattern \(MEME\)"),
        ("--tensor-parallel-num-weight-shards 2", r"--tensor-parallel-num-weight-shards \(2\)"),
        (
            "--expert-tensor-parallel-num-weight-shards 2 --moe-latent-size 8",
            r"--moe-latent-size \(8\), --expert-tensor-parallel-num-weight-shards \(2\)",
        ),
    ],
)
def test_what_the_planner_does_not_know_is_named(flags, named):
    with pytest.raises(ValueError, match=f"{named} is not known to the planner"):
        sizes_of(parsed(flags))


def test_a_vocabulary_that_only_the_tokenizer_knows_is_left_out_or_given():
    args = parsed()
    args.vocab_size = None
    assert sizes_of(args).model.vocab_size == 0
    assert sizes_of(args, vocabulary=Vocabulary(300, "")).model.vocab_size == 384
    args.padded_vocab_size = 500
    assert sizes_of(args, vocabulary=Vocabulary(300, "")).model.vocab_size == 500


def test_one_pass_is_where_the_layer_uses_grouped_experts():
    def in_one_pass(flags: str) -> bool:
        return sizes_of(parsed(flags)).training.grouped_experts

    assert in_one_pass("")
    assert not in_one_pass("--grove-kernel megatron")
    assert not in_one_pass("--transformer-impl transformer_engine")


def test_what_is_recomputed():
    def of(flags: str) -> tuple[frozenset[str], int | None, int]:
        read = sizes_of(parsed(flags)).training
        return read.recompute, read.recompute_layers, read.recompute_unit

    assert of("") == (frozenset(), None, 1)
    assert of("--recompute-activations") == ({"core_attn"}, None, 1)
    assert of("--recompute-granularity selective") == ({"core_attn"}, None, 1)
    assert of("--moe-layer-recompute") == ({"core_attn", "moe"}, None, 1)
    full = "--recompute-granularity full --recompute-num-layers 2 --recompute-method"
    assert of(f"{full} uniform") == ({"full"}, None, 2)
    assert of(f"{full} block") == ({"full"}, 2, 1)


def test_the_namespace_is_not_changed():
    args = parsed()
    before = copy.deepcopy(vars(args))
    sizes = sizes_of(args)
    assert vars(args) == before
    assert replace(sizes, model=sizes.model) == sizes
