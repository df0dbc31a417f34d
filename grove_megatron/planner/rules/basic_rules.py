"""Sizes that a job cannot do without, or that no job has.

Megatron 0.19 asserts its rules one after the other (training/arguments.py, transformer_config.py),
so a command line with five mistakes takes five starts, each of them in a queue. Here and in
:mod:`.validity` they are said all at once and with a fix; no Megatron is asked.
"""

from argparse import Namespace
from collections.abc import Iterator
from math import lcm

from ...checks.problem import Problem
from ...checks.rules import Check
from ...model.settings import expert_tensor_parallel_size


def basic_problems(args: Namespace) -> list[Problem]:
    """Sizes that are missing or below 1; with such no other rule makes sense.

    Args:
        args: parsed, not yet validated.
    """
    return [*_missing(args), *_below_1(args), *_beyond_any(args)]


_NEEDED = {
    "num_layers": "give the size of the model",
    "hidden_size": "give the size of the model",
    "num_attention_heads": "give the size of the model",
    "max_position_embeddings": "give the size of the model",
    "seq_length": "give the tokens of a sample",
    "micro_batch_size": "give the samples of one forward pass",
}


def _missing(args: Namespace) -> Iterator[Problem]:
    # Megatron takes these names for the others.
    layers, tokens = args.encoder_num_layers or None, args.encoder_seq_length
    check = Check(
        args,
        num_layers=layers if args.num_layers is None else args.num_layers,
        seq_length=tokens if args.seq_length is None else args.seq_length,
    )
    for name, fix in _NEEDED.items():
        yield from check.missing(name, fix)


_POSITIVE = (
    "num_layers hidden_size num_attention_heads num_query_groups kv_channels ffn_hidden_size "
    "moe_ffn_hidden_size moe_layer_freq moe_router_num_groups moe_router_group_topk "
    "seq_length micro_batch_size global_batch_size eval_micro_batch_size "
    "eval_global_batch_size make_vocab_size_divisible_by tensor_model_parallel_size "
    "pipeline_model_parallel_size context_parallel_size expert_model_parallel_size "
    "expert_tensor_parallel_size num_layers_per_virtual_pipeline_stage "
    "num_virtual_stages_per_pipeline_rank microbatch_group_size_per_vp_stage "
    "vocab_size padded_vocab_size max_position_embeddings num_distributed_optimizer_instances"
).split()
_WIDTHS = (
    "q_lora_rank kv_lora_rank qk_head_dim qk_pos_emb_head_dim v_head_dim "
    "grove_adjugate_ffn_hidden_size"
).split()
# Megatron takes 0 for none of them.
_NOT_NEGATIVE = ("num_experts", "mtp_num_layers", "moe_shared_expert_intermediate_size")


def _below_1(args: Namespace) -> Iterator[Problem]:
    check = Check(args)
    for name in _POSITIVE:
        if isinstance(getattr(args, name, None), int):
            yield from check.at_least(name, 1)
    for name in _NOT_NEGATIVE:
        yield from check.at_least(name, 0, "leave it out for none")


# More than any model or machine has; what is counted one by one would take days.
_MOST = {
    # Beyond it a product of two sizes and a few bytes is no number of a float any more.
    **dict.fromkeys((*_POSITIVE, *_NOT_NEGATIVE, *_WIDTHS), 10**15),
    **dict.fromkeys(("num_layers", "encoder_num_layers", "mtp_num_layers"), 10**5),
    **dict.fromkeys(("num_experts", "moe_router_topk", "grove_num_groups"), 10**6),
    **dict.fromkeys((name for name in _POSITIVE if name.endswith("_parallel_size")), 10**6),
    **dict.fromkeys(("num_virtual_stages_per_pipeline_rank", "recompute_num_layers"), 10**5),
}


def _beyond_any(args: Namespace) -> Iterator[Problem]:
    check = Check(args)
    for name, most in _MOST.items():
        if isinstance(getattr(args, name, None), int):
            yield from check.at_most(name, most, "correct it")


def smallest_world_size(args: Namespace) -> int:
    """The fewest processes that the parallel sizes of a command line need."""
    tensor, pipeline = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
    expert_tensor = expert_tensor_parallel_size(args)
    return lcm(
        max(tensor * args.context_parallel_size, 1) * max(pipeline, 1),
        max(args.expert_model_parallel_size * expert_tensor, 1) * max(pipeline, 1),
    )


def whole_model(args: Namespace, _: int = 1) -> Iterator[Problem]:
    """Sizes of the model that do not fit each other, whatever the layout."""
    check = Check(args)
    if args.kv_channels is None:
        fix = "use a number of heads that divides it, or give --kv-channels"
        yield from check.multiple("hidden_size", "num_attention_heads", fix)
    yield from check.at_least("max_position_embeddings", "seq_length", "raise it")
    yield from check.excludes("fp16", "bf16", "give one of them")
