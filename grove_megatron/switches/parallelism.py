"""Layouts."""

from typing import Any

from .rows import Area, Idle, Ignored, Refused, Works, idle_without


def _has_virtual_stages(args: Any) -> bool:
    """Is a pipeline stage asked for in pieces? How many come of it depends on the layers."""
    return bool(
        args.num_layers_per_virtual_pipeline_stage
        or args.num_virtual_stages_per_pipeline_rank
        or args.pipeline_model_parallel_layout
    )


AREA = Area(
    "Parallelism",
    (
        Works(name="ep2", flags="--expert-model-parallel-size 2", compare="layout"),
        Works(
            name="ep4",
            flags="--expert-model-parallel-size 4",
            ranks=4,
            compare="layout",
            note="at most as many as groups, and a divisor of their number",
        ),
        Works(
            name="tp2-sp",
            flags="--tensor-model-parallel-size 2 --sequence-parallel",
            compare="layout",
            # Megatron's own dispatch gathers uneven lists, which gloo does not.
            beside_megatron=False,
            note="Megatron trains MoE with tensor parallelism only beside sequence parallelism",
        ),
        Works(
            name="tp2-etp1-ep2",
            flags="--tensor-model-parallel-size 2 --sequence-parallel "
            "--expert-tensor-parallel-size 1 --expert-model-parallel-size 2",
            compare="layout",
        ),
        Works(
            name="tp2-etp2-ep2",
            flags="--tensor-model-parallel-size 2 --sequence-parallel "
            "--expert-tensor-parallel-size 2 --expert-model-parallel-size 2",
            ranks=4,
            compare="layout",
            # Megatron's own dispatch gathers uneven lists, which gloo does not.
            beside_megatron=False,
        ),
        Works(name="pp2", flags="--pipeline-model-parallel-size 2", compare="layout"),
        Works(
            name="pp2-uneven",
            flags="--pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 1 "
            "--decoder-last-pipeline-num-layers 3",
            layout="--num-layers 4",
            compare="layout",
        ),
        Works(
            name="pp2-vpp2",
            flags="--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1",
            layout="--num-layers 4",
            compare="layout",
        ),
        Works(
            name="vpp-stages",
            flags="--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2",
            layout="--num-layers 4",
            compare="layout",
            note="the same by another name",
        ),
        Works(
            name="pp-layout",
            flags="--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout Et|t|t|tL",
            layout="--num-layers 4",
            compare="layout",
        ),
        Works(
            name="p2p-overlap",
            flags="--overlap-p2p-communication-warmup-flush",
            layout="--num-layers 4 --pipeline-model-parallel-size 2 "
            "--num-layers-per-virtual-pipeline-stage 1",
        ),
        Works(
            name="microbatch-group",
            flags="--microbatch-group-size-per-virtual-pipeline-stage 4",
            layout="--num-layers 4 --pipeline-model-parallel-size 2 "
            "--num-layers-per-virtual-pipeline-stage 1",
        ),
        Works(
            name="rank-order",
            flags="--use-tp-pp-dp-mapping",
            layout="--pipeline-model-parallel-size 2",
            ranks=4,
            compare="runs",
        ),
        Works(
            name="cp2",
            flags="--context-parallel-size 2",
            # TransformerEngine splits the sequence of 16-bit attention alone.
            layout="--bf16",
            compare="layout",
            tolerance=2e-2,
            needs="te",
            tests=("tests/multirank/test_context_parallel.py",),
        ),
        Works(
            name="fake-process-group",
            flags="--fake-process-group",
            layout="--expert-model-parallel-size 4 --tensor-model-parallel-size 2 "
            "--sequence-parallel --expert-tensor-parallel-size 2 "
            "--pipeline-model-parallel-size 2",
            ranks=1,
            simulated=16,
            compare="runs",
            beside_megatron=False,
            tests=("tests/unit/comm/test_fake_group.py",),
            note="one process, started with the WORLD_SIZE of the job, shows its memory and "
            "shapes; the other ranks are taken for copies of it, and losses mean nothing",
        ),
        Refused(
            setting="use_megatron_fsdp",
            flags="--use-megatron-fsdp",
            reason="reduces adjugates over the wrong ranks; use --use-distributed-optimizer",
            of="groups",
        ),
        Refused(
            setting="use_torch_fsdp2",
            flags="--use-torch-fsdp2",
            reason="has no expert parallelism and is not tested with groups; use "
            "--use-distributed-optimizer",
            of="groups",
        ),
        Refused(
            setting="tensor_parallel_num_weight_shards",
            flags="--tensor-parallel-num-weight-shards 2",
            reason="is not tested with groups; remove it",
            when=lambda v, settings: v != settings.tensor_model_parallel_size,
            of="groups",
        ),
        Refused(
            setting="expert_tensor_parallel_num_weight_shards",
            flags="--expert-tensor-parallel-num-weight-shards 2",
            reason="is not tested with groups; remove it",
            when=lambda v, settings: (
                v != (settings.expert_tensor_parallel_size or settings.tensor_model_parallel_size)
            ),
            of="groups",
        ),
        Ignored(
            "--micro-batch-size --global-batch-size --step-batch-size-schedule "
            "--decrease-batch-size-if-needed",
            "how many microbatches there are; what virtual stages need of them is checked at start",
        ),
        Ignored(
            "--hierarchical-context-parallel-sizes --hybrid-context-parallel",
            "how the attention is split with --context-parallel-size",
        ),
        idle_without("hybrid_context_parallel", "--max-seqlen-per-dp-cp-rank"),
        Idle(
            "--cp-comm-type",
            " without --context-parallel-size above 1",
            lambda s: s.context_parallel_size == 1,
        ),
        Ignored(
            "--mtp-standalone --account-for-embedding-in-pipeline-split "
            "--account-for-loss-in-pipeline-split --defer-embedding-wgrad-compute",
            "which stage has which layers, and what the pipeline sends between them",
        ),
        Idle(
            "--pipeline-model-parallel-comm-backend",
            " without --pipeline-model-parallel-size above 1",
            lambda s: s.pipeline_model_parallel_size == 1,
        ),
        Idle(
            "--microbatch-group-size-per-virtual-pipeline-stage --no-overlap-p2p-communication",
            " without virtual pipeline stages",
            lambda s: not _has_virtual_stages(s),
        ),
        idle_without("defer_embedding_wgrad_compute", "--wgrad-deferral-limit"),
        Idle(
            "--sequence-parallel",
            " without --tensor-model-parallel-size above 1",
            lambda s: s.tensor_model_parallel_size == 1,
        ),
        idle_without(
            "tp_comm_overlap",
            "--tp-comm-overlap-cfg --tp-comm-overlap-rs-dgrad --no-tp-comm-bulk-wgrad "
            "--no-tp-comm-bulk-dgrad --no-tp-comm-overlap-ag --no-tp-comm-overlap-rs "
            "--no-tp-comm-split-ag --no-tp-comm-split-rs --tp-comm-bootstrap-backend",
        ),
        Ignored(
            "--tp-comm-overlap --symmetric-ar-type",
            "how TransformerEngine overlaps the matrices of attention and dense layers",
        ),
        Ignored(
            "--fsdp-manual-registration --init-model-with-meta-device --create-all-gather-group",
            "of the refused kinds of FSDP",
        ),
        idle_without("use_torch_fsdp2", "--torch-fsdp2-no-reshard-after-forward"),
        Idle("--disable-symmetric-registration", " without --use-nccl-ub", lambda s: not s.nccl_ub),
        Ignored(
            "--distributed-backend --distributed-timeout-minutes --local-rank "
            "--nccl-communicator-config-path --disable-gloo-process-groups --use-sharp "
            "--sharp-enabled-group --high-priority-stream-groups "
            "--distributed-timeout-seconds-after-init --flight-recorder-dump-path "
            "--disable-jit-fuser --use-nccl-ub --model-parallel-size",
            "how processes find and talk to each other",
        ),
    ),
)
