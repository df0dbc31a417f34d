"""Inference, CUDA graphs, reinforcement learning."""

from .rows import Area, Ignored, Refused

AREA = Area(
    "Inference and CUDA graphs",
    (
        Refused(
            setting="transformer_impl",
            flags="--transformer-impl inference_optimized",
            reason="is not supported with --grove-num-groups; use local or transformer_engine",
            when=lambda v, _: v == "inference_optimized",
            of="groups",
        ),
        Refused(
            setting="cuda_graph_impl",
            flags="--cuda-graph-impl local",
            reason="cannot capture a dispatch whose row counts are read on the host; use none",
            when=lambda v, _: v != "none",
        ),
        Refused(
            setting="moe_pad_experts_for_cuda_graph_inference",
            flags="--moe-pad-experts-for-cuda-graph-inference",
            reason="would count padding as tokens of an adjugate; remove it",
            of="groups",
        ),
        Refused(
            setting="inference_rng_tracker",
            flags="--inference-rng-tracker",
            reason="begins the experts of all ranks with the same weights; remove it",
        ),
        Ignored(
            "--flash-decode --nccl-all-reduce-for-prefill --inference-fuse-tp-communication "
            "--inference-disable-triton-nvls-kernels --inference-grouped-gemm-backend "
            "--inference-moe-disable-fused-quant-kernels --inference-moe-token-dispatcher-type",
            "of the attention, or of --transformer-impl inference_optimized",
        ),
        Ignored(
            "--enable-cuda-graph --external-cuda-graph",
            "older names of --cuda-graph-impl, refused as that",
        ),
        Ignored(
            "--cuda-graph-scope --cuda-graph-modules --cuda-graph-warmup-steps "
            "--inference-cuda-graph-scope",
            "of --cuda-graph-impl",
        ),
    ),
)
