"""Megatron's flags on a CPU: which defaults differ, and what cannot be had.

A flag that only says *how* something is computed gets a CPU default; given explicitly with a
value that needs a GPU, it is refused like everything else here, never changed.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from typing import Any

from megatron.core.transformer.enums import AttnBackend

from ..checks.flags import flag_of
from ..checks.problem import Problem
from ..config import has_grove_layers

CPU_DEFAULTS: dict[str, Any] = {
    "distributed_backend": "gloo",
    "transformer_impl": "local",
    "attention_backend": AttnBackend.unfused,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "bias_swiglu_fusion": False,
    "bias_gelu_fusion": False,
    "bias_dropout_fusion": False,
    "apply_rope_fusion": False,
    "no_persist_layer_norm": True,
}


def set_cpu_defaults(parser: ArgumentParser) -> ArgumentParser:
    """Give a parser the defaults of :data:`CPU_DEFAULTS`; what the user wrote still wins."""
    parser.set_defaults(**CPU_DEFAULTS)
    return parser


def _differs(value: Any) -> Callable[[Any], bool]:
    return lambda v: v != value


# Setting, is this value refused?, reason and alternative.
_REFUSED: list[tuple[str, Callable[[Any], bool], str]] = [
    ("distributed_backend", lambda v: v == "nccl", "needs a GPU; use gloo"),
    ("transformer_impl", _differs("local"), "needs a GPU; use local"),
    (
        "attention_backend",
        lambda v: v not in (AttnBackend.unfused, AttnBackend.local),
        "needs a GPU; use unfused",
    ),
    ("context_parallel_size", lambda v: v > 1, "needs TransformerEngine attention; use 1"),
    ("fp8", bool, "needs a GPU; remove it"),
    ("fp4", bool, "needs a GPU; remove it"),
    ("cuda_graph_impl", _differs("none"), "needs a GPU; use none"),
    ("delay_wgrad_compute", bool, "needs TransformerEngine; remove it"),
    ("moe_permute_fusion", bool, "needs TransformerEngine; remove it"),
    ("moe_router_fusion", bool, "needs TransformerEngine; remove it"),
    (
        "recompute_modules",
        lambda v: not {*v}.isdisjoint(("moe_act", "mla_up_proj", "gdn_norm_out")),
        "needs TransformerEngine for all but core_attn, layernorm, mlp, moe, shared_experts; use "
        "these",
    ),
    ("fine_grained_activation_offloading", bool, "needs a GPU; remove it"),
    ("cpu_offloading_num_layers", bool, "needs a GPU; remove it"),
    ("optimizer_cpu_offload", bool, "needs a GPU; remove it"),
    ("use_megatron_fsdp", bool, "needs a GPU; use --use-distributed-optimizer"),
    ("use_torch_fsdp2", bool, "needs a GPU; use --use-distributed-optimizer"),
    ("nccl_ub", bool, "needs a GPU; remove it"),
    ("tp_comm_overlap", bool, "needs TransformerEngine; remove it"),
    (
        "async_save",
        bool,
        "writes from a worker process that would read the tensors the training step is changing: "
        "CPU tensors are shared with the worker, not copied; remove it, saves are then complete "
        "when they return",
    ),
    ("logits_save_dir", bool, "needs --async-save; remove it"),
    # Of these Megatron asserts some after the model is built, and leaves others out silently.
    ("enable_cuda_graph", bool, "needs a GPU; remove it"),
    ("external_cuda_graph", bool, "needs a GPU; remove it"),
    ("optimizer_cuda_graph", bool, "needs a GPU; remove it"),
    ("batch_invariant_mode", bool, "needs a GPU; remove it"),
    ("symmetric_ar_type", bool, "needs a GPU; remove it"),
    ("use_kitchen_attention", bool, "needs a GPU; remove it"),
    ("moe_token_dispatcher_type", lambda v: v == "flex", "needs a GPU; use alltoall"),
    ("moe_enable_deepep", bool, "needs a GPU; remove it"),
    ("hybrid_context_parallel", bool, "needs TransformerEngine attention; remove it"),
    ("use_te_activation_func", bool, "needs TransformerEngine; remove it"),
    ("use_transformer_engine_op_fuser", bool, "needs TransformerEngine; remove it"),
    ("fused_residual_rmsnorm", bool, "needs TransformerEngine; remove it"),
    ("use_precision_aware_optimizer", bool, "needs TransformerEngine; remove it"),
    ("te_rng_tracker", bool, "needs TransformerEngine; remove it"),
    ("te_precision_config_file", bool, "needs TransformerEngine; remove it"),
    ("cross_entropy_fusion_impl", lambda v: v == "te", "needs TransformerEngine; use native"),
    ("high_priority_stream_groups", bool, "is of NCCL, which needs a GPU; remove it"),
    ("nccl_communicator_config_path", bool, "is of NCCL, which needs a GPU; remove it"),
    ("use_sharp", bool, "is of NCCL, which needs a GPU; remove it"),
    ("sharp_enabled_group", bool, "is of NCCL, which needs a GPU; remove it"),
    (
        "pipeline_model_parallel_comm_backend",
        bool,
        "needs a GPU; remove it, --distributed-backend is used",
    ),
    ("use_ring_exchange_p2p", bool, "needs NVIDIA's build of torch; remove it"),
    ("record_memory_history", bool, "records what happens to GPU memory; remove it"),
    ("log_energy", bool, "reads the meter of a GPU; remove it"),
    ("gpu_sniff_test_interval", bool, "measures a GPU; remove it"),
]


def cpu_problems(args: Namespace) -> Iterator[Problem]:
    """Flags that cannot work on a CPU."""
    for name, refused, why in _REFUSED:
        value = getattr(args, name, None)
        if value is not None and refused(value):
            yield Problem(flag_of(name), value, f"on the CPU runtime {why}")
    if args.multi_latent_attention and not (has_grove_layers(args) or args.spec):
        # Megatron's local layers have no core of it (grove_megatron/moe/latent_attention.py).
        yield Problem(
            "--multi-latent-attention",
            True,
            "on the CPU runtime needs the layers of this package; add --grove-dispatch",
        )
    if getattr(args, "profile", False) and not args.use_pytorch_profiler:
        yield Problem(
            "--profile",
            True,
            "on the CPU runtime switches a profiler of CUDA on and off; add --use-pytorch-profiler",
        )
