"""The planner's sizes of a Megatron command line."""

import math
import os
from argparse import Namespace
from typing import Any

import torch

from ..checks.flags import flag_of
from ..config import (
    expert_tensor_parallel_size,
    has_adjugates,
    has_grove_layers,
    moe_pattern,
)
from ..model.architecture import Model
from ..parts import registry
from ..planner.inputs import Layout, Precision, Sizes, Training
from ..planner.pipeline import chunks_in_letters
from .vocabulary import Vocabulary

# Bytes of the optimizer's state for every parameter, beside its copy of the weights.
_MOMENTS = {"lion": 4, "sgd": 4}
_DTYPE_NAMES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}

# Setting, does the planner not know it?
_UNKNOWN: dict[str, Any] = {
    "multi_latent_attention": bool,
    "hybrid_layer_pattern": lambda v: v is not None,
    "heterogeneous_layers_config_path": lambda v: v is not None,
    "heterogeneous_layers_config_encoded_json": lambda v: v is not None,
    "experimental_attention_variant": lambda v: v is not None,
    "moe_latent_size": lambda v: v is not None,
    "use_megatron_fsdp": bool,
    "use_torch_fsdp2": bool,
}


def sizes_of(
    args: Namespace, world_size: int | None = None, vocabulary: Vocabulary | None = None
) -> Sizes:
    """What the planner asks of a job.

    Args:
        args: Megatron's namespace with the Grove flags, before or after its validation.
        world_size: ranks of the job; None for those of ``args``.
        vocabulary: its tokens; None for ``--vocab-size``. ``--padded-vocab-size`` overrules both.

    Raises:
        ValueError: a setting that the planner does not know, or sizes that do not fit.
    """
    unknown = [
        f"{flag_of(name)} ({value})"
        for name, is_unknown in _UNKNOWN.items()
        if (value := getattr(args, name, None)) is not None and is_unknown(value)
    ]
    for name, size in _weight_shards(args).items():
        value = getattr(args, name)
        if value is not None and value > size:
            unknown.append(f"{flag_of(name)} ({value})")
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} is not known to the planner, whose numbers would be wrong; "
            "remove it to plan without"
        )
    tokens = args.vocab_size if vocabulary is None else vocabulary.tokens
    layout = _layout(args, world_size)
    return Sizes(model=_model(args, tokens), layout=layout, training=_training(args, layout))


def _weight_shards(args: Namespace) -> dict[str, int]:
    """Settings that divide weights further than the sizes they default to."""
    tensor = args.tensor_model_parallel_size
    return {
        "tensor_parallel_num_weight_shards": tensor,
        "expert_tensor_parallel_num_weight_shards": expert_tensor_parallel_size(args),
    }


def _model(args: Namespace, tokens: int | None) -> Model:
    experts = args.num_experts or 0
    pattern = moe_pattern(args) if experts else (False,) * args.num_layers
    depths = args.mtp_num_layers or 0
    grove = has_adjugates(args)
    shared = (args.moe_shared_expert_intermediate_size or 0) if experts else 0
    width = ffn_hidden_size(args)
    return Model(
        hidden_size=args.hidden_size,
        head_dim=args.kv_channels or args.hidden_size // args.num_attention_heads,
        num_attention_heads=args.num_attention_heads,
        num_query_groups=args.num_query_groups
        if args.group_query_attention
        else args.num_attention_heads,
        vocab_size=padded_vocab_size(args, tokens),
        moe_layers=pattern,
        ffn_hidden_size=width,
        num_experts=experts,
        moe_ffn_hidden_size=(args.moe_ffn_hidden_size or width) if experts else 0,
        topk=args.moe_router_topk if experts else 0,
        local_experts=registry.local_experts(args) if experts and has_grove_layers(args) else 0,
        constant_experts=args.grove_constant_experts if experts and has_grove_layers(args) else 0,
        local_tau=args.grove_local_tau if getattr(args, "grove_heterogeneous_loss_coeff", 0) else 1,
        num_groups=args.grove_num_groups if grove else 0,
        adjugate_ffn_hidden_size=args.grove_adjugate_ffn_hidden_size if grove else 0,
        expert_bias=bool(experts and args.moe_router_enable_expert_bias),
        part_weights=registry.weights(args) if experts and has_grove_layers(args) else (),
        shared_expert_size=shared,
        shared_expert_gate=bool(shared and args.moe_shared_expert_gate),
        mtp_depths=depths,
        mtp_modules=min(depths, 1) if args.mtp_use_repeated_layer else depths,
        gated=is_gated(args),
        norm_bias=args.normalization != "RMSNorm",
        qk_layernorm=args.qk_layernorm,
        whole_qk_norm=bool(experts and has_grove_layers(args) and args.grove_whole_qk_norm),
        attention_output_gate=args.attention_output_gate,
        softmax_offset=args.softmax_type == "learnable",
        linear_bias=args.add_bias_linear,
        qkv_bias=args.add_qkv_bias,
        learned_positions=args.max_position_embeddings
        if args.position_embedding_type == "learned_absolute"
        else 0,
        tied_embeddings=not args.untie_embeddings_and_output_weights,
    )


def is_gated(args: Namespace) -> bool:
    """Has an FFN three matrices and not two?"""
    return bool(args.swiglu or args.quick_geglu)


def ffn_hidden_size(args: Namespace) -> int:
    """Of dense layers, and of experts without a width; Megatron's default, arguments.py:1280 @
    0.19.2."""
    if args.ffn_hidden_size is not None:
        return int(args.ffn_hidden_size)
    hidden = int(args.hidden_size)
    return int((4 * hidden * 2 / 3) / 64) * 64 if args.swiglu else 4 * hidden


def padded_vocab_size(args: Namespace, tokens: int | None) -> int:
    """Rows of the embedding of a model with so many tokens."""
    if args.padded_vocab_size is not None:
        return int(args.padded_vocab_size)
    multiple = args.make_vocab_size_divisible_by * args.tensor_model_parallel_size
    return int(math.ceil((tokens or 0) / multiple) * multiple)


def _layout(args: Namespace, world_size: int | None) -> Layout:
    letters = args.pipeline_model_parallel_layout
    return Layout(
        tensor=args.tensor_model_parallel_size,
        pipeline=args.pipeline_model_parallel_size,
        context=args.context_parallel_size,
        expert=args.expert_model_parallel_size,
        expert_tensor=expert_tensor_parallel_size(args),
        world=world_size or getattr(args, "world_size", None) or _launched_world_size(),
        sequence_parallel=args.sequence_parallel,
        virtual=model_chunks(args),
        chunk_microbatches=args.microbatch_group_size_per_vp_stage,
        first_layers=args.decoder_first_pipeline_num_layers,
        last_layers=args.decoder_last_pipeline_num_layers,
        count_embedding=args.account_for_embedding_in_pipeline_split,
        count_loss=args.account_for_loss_in_pipeline_split,
        custom=None if letters is None else str(letters),
        all_gather=args.moe_token_dispatcher_type == "allgather",
        row_per_expert=not has_grove_layers(args),
    )


def _launched_world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def split_layers(args: Namespace) -> int:
    """What is divided over the pipeline: layers, and what counts as one."""
    # Megatron's validation takes the second name for the first.
    layers = args.num_layers if args.num_layers is not None else args.encoder_num_layers
    extra = args.account_for_embedding_in_pipeline_split + args.account_for_loss_in_pipeline_split
    return int(layers + extra)


def model_chunks(args: Namespace) -> int:
    """Of a stage; Megatron's validation keeps their number under another name."""
    validated = getattr(args, "virtual_pipeline_model_parallel_size", None)
    if validated is not None:
        return int(validated)
    letters = args.pipeline_model_parallel_layout
    if letters is not None:
        stages = int(args.pipeline_model_parallel_size)
        return max(1, len(chunks_in_letters(str(letters))) // stages)
    if args.num_virtual_stages_per_pipeline_rank is not None:
        return int(args.num_virtual_stages_per_pipeline_rank)
    if args.num_layers_per_virtual_pipeline_stage is None:
        return 1
    per_stage = split_layers(args) // args.pipeline_model_parallel_size
    return max(1, int(per_stage // args.num_layers_per_virtual_pipeline_stage))


def _training(args: Namespace, layout: Layout) -> Training:
    micro_batch = args.micro_batch_size
    samples = (args.global_batch_size or micro_batch * layout.data) // layout.data
    backend = getattr(args.attention_backend, "name", args.attention_backend)
    return Training(
        sequence_length=args.seq_length,
        micro_batch=micro_batch,
        microbatches=max(1, samples // micro_batch),
        distributed_optimizer=args.use_distributed_optimizer,
        optimizer_instances=args.num_distributed_optimizer_instances,
        precision=_precision(args),
        fused_attention=args.transformer_impl != "local" and backend not in ("unfused", "local"),
        grouped_experts=_in_one_pass(args),
        recompute=_recompute(args),
        recompute_layers=args.recompute_num_layers if args.recompute_method == "block" else None,
        recompute_unit=args.recompute_num_layers or 1 if args.recompute_method == "uniform" else 1,
        fused_activation=args.bias_swiglu_fusion,
        fused_weight_gradients=args.gradient_accumulation_fusion,
        # TransformerEngine has no other; torch's RMSNorm is several operators on a CPU, where
        # the next two flags have other defaults.
        fused_norms=args.transformer_impl != "local" or not args.no_persist_layer_norm,
        fused_dropout=args.bias_dropout_fusion,
        local=args.transformer_impl == "local",
        dropout=args.hidden_dropout > 0,
        attention_dropout=args.attention_dropout > 0,
        overlapped_experts=args.overlap_moe_expert_parallel_comm,
        train_only=tuple(getattr(args, "grove_train_only", None) or ()),
        capacity_factor=args.moe_expert_capacity_factor,
        padded_to_capacity=args.moe_pad_expert_input_to_capacity,
    )


def _in_one_pass(args: Namespace) -> bool:
    """Will the layer use GroupedExperts? As far as it decides memory."""
    if (
        not has_grove_layers(args)
        or args.grove_kernel == "megatron"
        or args.transformer_impl != "local"
    ):
        return False
    return bool(args.swiglu and not args.add_bias_linear)


def _recompute(args: Namespace) -> frozenset[str]:
    if args.moe_layer_recompute:
        # An older name: the config makes this of it (transformer_config.py:1835 @ 0.19.2).
        return frozenset([*(args.recompute_modules or ["core_attn"]), "moe"])
    if getattr(args, "recompute_activations", False) or args.recompute_granularity == "selective":
        return frozenset(args.recompute_modules or ["core_attn"])
    return frozenset(["full"]) if args.recompute_granularity == "full" else frozenset()


def _precision(args: Namespace) -> Precision:
    is_16_bit = args.bf16 or args.fp16
    in_fp32 = args.accumulate_allreduce_grads_in_fp32
    if args.bf16:
        # What Megatron's validation makes of it, arguments.py:1190 @ 0.19.2.
        in_fp32 = not args.grad_reduce_in_bf16 and (in_fp32 or _bytes(args.main_grads_dtype) == 4)
    moments = _MOMENTS.get(args.optimizer, 8)
    if args.optimizer == "adam":
        moments = _bytes(args.exp_avg_dtype) + _bytes(args.exp_avg_sq_dtype)
    elif args.optimizer == "sgd" and not args.sgd_momentum:
        moments = 0
    return Precision(
        weight=2 if is_16_bit else 4,
        gradient=4 if in_fp32 or not is_16_bit else 2,
        main_weight=_bytes(args.main_params_dtype) if is_16_bit else 0,
        moments=moments,
    )


def _bytes(dtype: Any) -> int:
    """Of an element; Megatron's validation replaces the names by dtypes."""
    return int(dtype.itemsize) if isinstance(dtype, torch.dtype) else _DTYPE_NAMES[dtype]
