"""Dispatchers and their communication."""

from .rows import Area, Idle, Ignored, Refused, Shown, Works, idle_without

EP2 = "--expert-model-parallel-size 2"
AREA = Area(
    "Dispatch",
    (
        Works(
            name="alltoall",
            flags="--moe-token-dispatcher-type alltoall",
            layout=EP2,
            note="a token crosses to a rank once; the dispatcher to use",
        ),
        Works(
            name="allgather",
            flags="--moe-token-dispatcher-type allgather",
            layout=EP2,
            note="Megatron's own and its default, every token to every rank: a reference, not for "
            "speed",
            tests=("tests/multirank/test_layer.py::test_megatrons_all_gather_computes_the_same",),
        ),
        Refused(
            setting="moe_token_dispatcher_type",
            flags="--moe-token-dispatcher-type flex --moe-flex-dispatcher-backend deepep",
            reason="is not supported with --grove-num-groups; use --moe-token-dispatcher-type "
            "alltoall, which this plugin deduplicates",
            when=lambda v, _: v not in ("alltoall", "allgather"),
            of="groups",
        ),
        Shown(
            what="`--grove-dispatch`: a plain MoE, without groups",
            tests=("tests/integration/test_plain_dispatch.py",),
            note="losses and gradient norms are those of Megatron's own layer; beside tensor, "
            "expert and virtual pipeline parallelism, MTP, shared experts, capacity, sinkhorn and "
            "recompute too",
        ),
        Works(
            name="ep-overlap",
            flags="--overlap-moe-expert-parallel-comm",
            layout=f"{EP2} --bf16",
            tolerance=2e-2,
            beside_megatron=False,
            note="bf16 or fp16, as Megatron wants it",
        ),
        Works(
            name="delay-wgrad",
            flags="--delay-wgrad-compute",
            layout=f"{EP2} --bf16 --overlap-moe-expert-parallel-comm --moe-grouped-gemm",
            tolerance=2e-2,
            needs="te",
            tests=("tests/multirank/test_grouped_mlp.py",),
        ),
        Works(
            name="overlap-dispatch-backward",
            flags="--overlap-dispatch-backward-with-experts-wgrad",
            layout=f"{EP2} --bf16 --moe-grouped-gemm",
            tolerance=2e-2,
            needs="te",
            tests=("tests/multirank/test_grouped_mlp.py",),
            note="of TransformerEngine's grouped experts alone, so with --moe-grouped-gemm",
        ),
        Works(
            name="permute-fusion",
            flags="--moe-permute-fusion",
            layout=EP2,
            needs="te",
            note="of Megatron's permutation, which Grove layers do not call",
        ),
        Refused(
            setting="moe_shared_expert_overlap",
            flags="--moe-shared-expert-intermediate-size 16 --moe-shared-expert-overlap",
            reason="is not supported with --grove-num-groups; remove it, shared experts work "
            "without",
            of="groups",
        ),
        Refused(
            setting="moe_paged_stash",
            flags="--moe-paged-stash",
            reason="belongs to dispatchers that are not Grove's; remove it",
        ),
        Refused(
            setting="moe_enable_deepep",
            flags="--moe-enable-deepep",
            reason="belongs to --moe-token-dispatcher-type flex, which is not Grove's; remove it",
        ),
        Idle(
            "--moe-flex-dispatcher-backend --moe-flex-dispatcher-num-sms --moe-deepep-num-sms "
            "--moe-hybridep-num-sms --moe-hybridep-num-blocks-permute "
            "--moe-hybridep-num-blocks-unpermute --moe-hybridep-num-sms-preprocessing "
            "--moe-permute-fusion-into-hybridep --moe-hybridep-pad-uneven-dispatch-inputs "
            "--moe-ncclep-static-shape --moe-ncclep-zero-copy",
            " without --moe-token-dispatcher-type flex",
            lambda s: s.moe_token_dispatcher_type != "flex",
        ),
        idle_without(
            "moe_paged_stash",
            "--moe-paged-stash-page-size --moe-paged-stash-buffer-size-factor-cuda "
            "--moe-paged-stash-buffer-size-factor-cpu",
        ),
        idle_without("overlap_moe_expert_parallel_comm", "--high-priority-a2a-comm-stream"),
        Ignored(
            "--ep-overlap-early-attn-memory-release",
            "when things run under --overlap-moe-expert-parallel-comm, not what is computed",
        ),
    ),
)
