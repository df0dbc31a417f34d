"""Activations: recomputed, or kept elsewhere."""

from .model import LATENT
from .rows import Area, Ignored, Refused, Works, idle_without

EP2 = "--expert-model-parallel-size 2"
SELECTIVE = "--recompute-granularity selective --recompute-modules"
AREA = Area(
    "Recompute and offloading",
    (
        Works(
            name="recompute-full",
            flags="--recompute-granularity full --recompute-method uniform "
            "--recompute-num-layers 1",
            layout=EP2,
        ),
        Works(
            name="recompute-block",
            flags="--recompute-granularity full --recompute-method block --recompute-num-layers 1",
            layout=EP2,
        ),
        Works(name="recompute-moe", flags=f"{SELECTIVE} moe", layout=EP2),
        Works(
            name="recompute-layernorm",
            flags=f"{SELECTIVE} layernorm",
            layout=EP2,
            tests=("tests/multirank/test_grouped_mlp.py",),
        ),
        Works(name="recompute-core-attn", flags=f"{SELECTIVE} core_attn", layout=EP2),
        Works(
            name="recompute-mla-up-proj",
            flags=f"{SELECTIVE} mla_up_proj",
            layout=f"{EP2} --bf16 {LATENT}",
            tolerance=2e-2,
            needs="te",
        ),
        Works(
            name="recompute-shared-experts",
            flags=f"{SELECTIVE} shared_experts",
            layout=f"{EP2} --moe-shared-expert-intermediate-size 16",
        ),
        Works(
            name="recompute-moe-act",
            flags=f"{SELECTIVE} moe_act",
            layout=f"{EP2} --moe-grouped-gemm --bf16",
            tolerance=2e-2,
            needs="te",
            tests=("tests/multirank/test_grouped_mlp.py",),
            note="of experts and adjugates alike",
        ),
        Works(
            name="distribute-activations",
            flags="--distribute-saved-activations",
            layout="--tensor-model-parallel-size 2 --recompute-granularity full "
            "--recompute-method uniform --recompute-num-layers 1",
            compare="runs",
            needs="cuda",
        ),
        Refused(
            setting="fine_grained_activation_offloading",
            flags="--fine-grained-activation-offloading --offload-modules moe_act",
            reason="gives experts and adjugates one name for their offloaded tensors; remove it, "
            "recompute works",
            of="groups",
        ),
        idle_without(
            "fine_grained_activation_offloading",
            "--offload-modules --min-offloaded-tensor-size --delay-offload-until-cuda-graph "
            "--delta-offload-bytes-across-pp-ranks --activation-offload-fraction "
            "--fine-grained-offloading-max-inflight-offloads",
        ),
        Ignored(
            "--cpu-offloading-num-layers",
            "whole layers, by TransformerEngine",
        ),
        idle_without("cpu_offloading_num_layers", "--cpu-offloading-retain-pinned-cpu-buffers"),
        Refused(
            setting="checkpoint_activations",
            flags="--checkpoint-activations",
            reason="is an older name at which Megatron ends the job with exit code 0; use "
            "--recompute-activations",
        ),
        Ignored(
            "--recompute-activations --moe-layer-recompute",
            "older names of --recompute-granularity and --recompute-modules",
        ),
    ),
)
