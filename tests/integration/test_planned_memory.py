"""The planner's bytes against those of tensors that a real training run allocates."""

import re
from pathlib import Path

import pytest

from tests.ranks import Job, Ranks

from .allocated_job import KINDS
from .flags import DATA

MODEL = [
    *DATA,
    *(
        "--num-layers 6 --hidden-size 64 --num-attention-heads 4 --seq-length 64 "
        "--max-position-embeddings 64 --micro-batch-size 2 --global-batch-size 8 --train-iters 2 "
        "--lr 1e-3 --swiglu --normalization LayerNorm --disable-bias-linear "
        "--position-embedding-type rope --untie-embeddings-and-output-weights "
        "--attention-dropout 0 --hidden-dropout 0 --num-experts 8 --moe-router-topk 2 "
        "--moe-ffn-hidden-size 96 --moe-router-dtype fp32 --moe-aux-loss-coeff 0.01 "
        "--moe-router-load-balancing-type aux_loss "
        "--moe-token-dispatcher-type alltoall --grove-num-groups 4 "
        "--grove-adjugate-ffn-hidden-size 48 --grove-metrics-interval 0"
    ).split(),
]
EP2 = "--expert-model-parallel-size 2"
TP2 = "--tensor-model-parallel-size 2 --sequence-parallel"
PP2 = "--pipeline-model-parallel-size 2"
LATENT = (
    "--multi-latent-attention --kv-lora-rank 64 --qk-head-dim 16 --qk-pos-emb-head-dim 8 "
    "--v-head-dim 20"
)
SHARDED = "--use-distributed-optimizer"
LAYOUTS = {
    "EP2 bf16 sharded": (2, f"{EP2} --bf16 {SHARDED}"),
    "EP2 bf16 sharded, adjugates alone": (
        2,
        f"{EP2} --bf16 {SHARDED} --grove-train-only adjugates",
    ),
    "DP2 bf16, adjugates and router": (2, "--bf16 --grove-train-only adjugates router"),
    "PP2 EP2 sharded bf16, one adjugate and all norms": (
        4,
        f"{PP2} {EP2} --bf16 {SHARDED} --grove-train-only layers\\.[05].*adjugate norms",
    ),
    "one rank": (1, ""),
    "EP2": (2, EP2),
    "DP2 sharded": (2, SHARDED),
    "DP2 bf16": (2, "--bf16"),
    "TP2 EP2 ETP1 bf16 sharded": (
        2,
        f"{TP2} {EP2} --expert-tensor-parallel-size 1 --bf16 {SHARDED}",
    ),
    "TP2 ETP2": (2, TP2),
    "PP2 sharded bf16": (2, f"{PP2} --bf16 {SHARDED}"),
    "PP2 two chunks": (2, f"{PP2} --num-virtual-stages-per-pipeline-rank 3"),
    "PP2 three chunks, four microbatches at a time": (
        2,
        f"{PP2} --num-virtual-stages-per-pipeline-rank 3 "
        "--microbatch-group-size-per-virtual-pipeline-stage 4",
    ),
    "PP2 two chunks in letters": (2, f"{PP2} --pipeline-model-parallel-layout Et|t*2|tt|tL"),
    "PP2 two chunks, recompute of a layer of each": (
        2,
        f"{PP2} --num-layers 8 --num-virtual-stages-per-pipeline-rank 2 "
        "--recompute-granularity full --recompute-method block --recompute-num-layers 1",
    ),
    "PP2 EP2 three chunks bf16, overlapped": (
        4,
        f"{PP2} {EP2} --num-virtual-stages-per-pipeline-rank 3 --bf16 --global-batch-size 16 "
        "--overlap-moe-expert-parallel-comm",
    ),
    "SGD, gradients in bf16": (1, "--optimizer sgd --bf16 --grad-reduce-in-bf16"),
    "experts apart": (1, "--grove-kernel megatron"),
    "recompute of the MoE layer": (
        1,
        "--recompute-granularity selective --recompute-modules moe core_attn",
    ),
    "recompute of all": (
        1,
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 2",
    ),
    "query groups, norms, a shared expert, a dense layer": (
        1,
        "--group-query-attention --num-query-groups 2 --qk-layernorm --ffn-hidden-size 160 "
        "--moe-shared-expert-intermediate-size 80 --moe-layer-freq [0,1,1,1,1,1]",
    ),
    "MTP": (1, "--mtp-num-layers 1"),
    "latent attention, TP2 EP2 ETP1 bf16 sharded": (
        2,
        f"{TP2} {EP2} --expert-tensor-parallel-size 1 --bf16 {SHARDED} {LATENT} --q-lora-rank 64 "
        "--qk-layernorm",
    ),
}
QUICK = ("EP2 bf16 sharded", "EP2 bf16 sharded, adjugates alone")
SCRIPT = str(Path(__file__).with_name("stock_entry_script.py"))
PARAMETERS = re.compile(r"number of parameters on \(.*?\) model parallel rank \(.*?\): (\d+)")
MEMORY = re.compile(r"Theoretical memory footprints: weight and optimizer=(\S+) MB")

# The one difference is the padding of the distributed optimizer's buffers and the step counters of
# torch's Adam; 0.016 % was measured where few small weights are trained, else 0.01 %.
EXACT = 1e-3
# Measured from -19 % (overlapped experts; -18 % with chunks that differ, -14 % with two ranks, one
# of which gets more rows from a random router) to +20 % (full recompute, where there is little to
# compare). In 16 bits torch's SwiGLU on a CPU has gradients in fp32, which is most of what lacks
# there.
ESTIMATED = 0.25


def finished(ranks: Ranks, folder: Path, world: int, argv: list[str], how: str = "train") -> Job:
    target = f"tests.integration.allocated_job:{how}"
    return ranks.run(world, target, str(folder), argv, folder=folder).check()


def check_what_megatron_says(job: Job) -> None:
    results = [result["planned"] for result in job.results()]
    # Every pipeline stage says so on its first data-parallel rank.
    printed = [PARAMETERS.findall(job.log(rank)) for rank in range(len(results))]
    assert printed[0] == [str(results[0]["parameters"])]
    said = [(line, result) for line, result in zip(printed, results, strict=True) if line]
    assert all(line == [str(result["parameters"])] for line, result in said)
    # Two decimals, after each of the first two iterations.
    memory = [float(megabytes) for megabytes in MEMORY.findall(job.log(0))]
    assert memory == pytest.approx([results[0]["theory"] / 2**20] * 2, abs=6e-3)
    # Sums of products in another order.
    assert job.results()[0]["flops"] == pytest.approx(results[0]["flops"], rel=1e-9)
    assert "adjugates a token and layer, expected under uniform routing" in job.log(0)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in LAYOUTS],
)
def test_what_is_planned_is_allocated_and_printed(ranks, tmp_path, name):
    world, flags = LAYOUTS[name]
    job = finished(ranks, tmp_path, world, [*MODEL, *flags.split()])
    for rank, result in enumerate(job.results()):
        planned, allocated = result["planned"]["bytes"], result["allocated"]
        assert planned.keys() == allocated.keys()
        for kind, size in allocated.items():
            tolerance = EXACT if kind in KINDS else ESTIMATED
            assert planned[kind] == pytest.approx(size, rel=tolerance), (rank, kind)
    check_what_megatron_says(job)


@pytest.mark.long
def test_a_foreign_script_is_told_the_same(ranks, tmp_path):
    check_what_megatron_says(
        finished(ranks, tmp_path, 2, [SCRIPT, *MODEL, *EP2.split()], "run_script")
    )
