"""The sizes of a Megatron command line, asked without importing Megatron or torch."""

import math
import os
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from ..checks.flags import flag_of
from ..checks.problem import shown
from ..model.architecture import LatentAttention, Model
from ..model.settings import (
    expert_tensor_parallel_size,
    has_adjugates,
    has_grove_layers,
    moe_pattern,
)
from ..model.weights import Weight
from .inputs import Layout, Precision, Sizes, Training
from .pipeline import chunks_in_letters

# Bytes of the optimizer's state for every parameter, beside its copy of the weights.
_MOMENTS = {"lion": 4, "sgd": 4}
_DTYPE_NAMES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}

# Setting, does the planner not know it?
_UNKNOWN: dict[str, Any] = {
    "mla_down_proj_fusion": bool,
    "hybrid_layer_pattern": lambda v: v is not None,
    "heterogeneous_layers_config_path": lambda v: v is not None,
    "heterogeneous_layers_config_encoded_json": lambda v: v is not None,
    "experimental_attention_variant": lambda v: v is not None,
    "moe_latent_size": lambda v: v is not None,
    "use_megatron_fsdp": bool,
    "use_torch_fsdp2": bool,
    # What stays of the optimizer, of weights and of activations on the GPU.
    "optimizer_cpu_offload": bool,
    "fine_grained_activation_offloading": bool,
    "offload_modules": bool,
    "fp4": bool,
    "fp8_param_gather": bool,
}

# Setting, does it change the seconds of a step, of which the planner knows no more?
_UNTIMED: dict[str, Any] = {
    "window_size": lambda v: v is not None,
    "moe_shared_expert_overlap": bool,
    "delay_wgrad_compute": bool,
    "attention_backend": lambda v: getattr(v, "name", v) in ("unfused", "local"),
    "transformer_impl": lambda v: v == "local",
}


@dataclass(frozen=True, kw_only=True)
class RouterParts:
    """What the parts of a router add to the sizes of a model.

    Attributes:
        local_experts: columns of the router beyond the routed experts.
        weights: what every router has beside its matrix.
    """

    local_experts: int = 0
    weights: tuple[Weight, ...] = ()


def sizes_of(
    args: Namespace, parts: RouterParts, world_size: int | None = None, tokens: int | None = None
) -> Sizes:
    """What the planner asks of a job.

    Args:
        args: Megatron's namespace with the Grove flags, before or after its validation.
        parts: of its router.
        world_size: ranks of the job; None for those of ``args``.
        tokens: of its vocabulary, None where they are not known; ``--padded-vocab-size`` overrules
            them.

    Raises:
        ValueError: a setting that the planner does not know, or sizes that do not fit.
    """
    refuse_unknown(args)
    layout = layout_of(args, world_size)
    return Sizes(
        model=model_of(args, parts, tokens), layout=layout, training=training_of(args, layout)
    )


def refuse_unknown(args: Namespace) -> None:
    """Refuse what the planner does not know.

    Raises:
        ValueError: naming all of it.
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


def not_planned(args: Namespace) -> list[str]:
    """Settings whose effect on time, but not on memory, is not planned; a line each."""
    found = [
        f"{flag_of(name)} ({shown(value)})"
        for name, is_untimed in _UNTIMED.items()
        if (value := getattr(args, name, None)) is not None and is_untimed(value)
    ]
    # Experts one after the other; of a Grove layer its own kernels group them.
    own = has_grove_layers(args) and getattr(args, "grove_kernel", "") != "megatron"
    if args.num_experts and not (args.moe_grouped_gemm or own):
        found.append("--moe-grouped-gemm (False)")
    return [f"not planned: {one}, which changes the time of a step" for one in found]


def _weight_shards(args: Namespace) -> dict[str, int]:
    """Settings that divide weights further than the sizes they default to."""
    tensor = args.tensor_model_parallel_size
    return {
        "tensor_parallel_num_weight_shards": tensor,
        "expert_tensor_parallel_num_weight_shards": expert_tensor_parallel_size(args),
    }


def model_of(args: Namespace, parts: RouterParts, tokens: int | None) -> Model:
    """The model alone; arguments as of :func:`sizes_of`."""
    experts = args.num_experts or 0
    pattern = moe_pattern(args) if experts else (False,) * args.num_layers
    depths = args.mtp_num_layers or 0
    grove = has_adjugates(args)
    shared = (args.moe_shared_expert_intermediate_size or 0) if experts else 0
    width = ffn_hidden_size(args)
    latent = _latent(args)
    channels = args.kv_channels or args.hidden_size // args.num_attention_heads
    return Model(
        hidden_size=args.hidden_size,
        head_dim=channels if latent is None else latent.head_dim,
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
        local_experts=parts.local_experts if experts and has_grove_layers(args) else 0,
        constant_experts=args.grove_constant_experts if experts and has_grove_layers(args) else 0,
        local_tau=args.grove_local_tau if getattr(args, "grove_heterogeneous_loss_coeff", 0) else 1,
        blocks=args.moe_router_num_groups or 0 if args.moe_router_group_topk else 0,
        blocks_chosen=(args.moe_router_group_topk or 0) if args.moe_router_num_groups else 0,
        num_groups=args.grove_num_groups if grove else 0,
        adjugate_ffn_hidden_size=args.grove_adjugate_ffn_hidden_size if grove else 0,
        expert_bias=bool(experts and args.moe_router_enable_expert_bias),
        part_weights=parts.weights if experts and has_grove_layers(args) else (),
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
        latent=latent,
    )


def _latent(args: Namespace) -> LatentAttention | None:
    if not args.multi_latent_attention:
        return None
    return LatentAttention(
        q_lora_rank=args.q_lora_rank,
        kv_lora_rank=args.kv_lora_rank,
        qk_head_dim=args.qk_head_dim,
        qk_pos_emb_head_dim=args.qk_pos_emb_head_dim,
        v_head_dim=args.v_head_dim,
        whole_compression=args.transformer_impl != "local",
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


def layout_of(args: Namespace, world_size: int | None = None) -> Layout:
    """How the ranks divide it; arguments as of :func:`sizes_of`."""
    letters = args.pipeline_model_parallel_layout
    is_flex = args.moe_token_dispatcher_type == "flex"
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
        # DeepEP and HybridEP send a token to a node once, and there to a rank.
        row_per_expert=not has_grove_layers(args) and not is_flex,
        hierarchical=is_flex or bool(getattr(args, "grove_hierarchical_dispatch", False)),
        fused=is_flex,
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


def training_of(args: Namespace, layout: Layout) -> Training:
    """What else decides its memory and work."""
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
        overlapped_gradients=args.overlap_grad_reduce,
        overlapped_parameters=args.overlap_param_gather,
        overlapped_tensor=args.tp_comm_overlap,
        overlapped_pipeline=layout.virtual > 1 and args.overlap_p2p_comm,
        graphed=_graphed(args),
        context_by_heads="a2a" in (args.cp_comm_type or ()),
        fp8=bool(args.fp8),
        train_only=tuple(getattr(args, "grove_train_only", None) or ()),
        capacity_factor=args.moe_expert_capacity_factor,
        padded_to_capacity=args.moe_pad_expert_input_to_capacity,
    )


def _graphed(args: Namespace) -> frozenset[str]:
    """What CUDA graphs cover of a layer; nothing named is all of it."""
    if args.cuda_graph_impl == "none":
        return frozenset()
    older = getattr(args, "cuda_graph_scope_deprecated", None)
    names = args.cuda_graph_modules or older or ["attn", "mlp", "moe", "moe_router"]
    found = frozenset(getattr(name, "name", name) for name in names)
    # The second is a part of the first.
    return found | {"moe_router", "moe_preprocess"} if "moe" in found else found


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
    return _DTYPE_NAMES[dtype] if isinstance(dtype, str) else int(dtype.itemsize)
