"""The search finds every valid layout, and says of each what the planner says of its flags."""

from dataclasses import replace
from itertools import product

import pytest

from grove_megatron.planner.choice import layouts
from grove_megatron.planner.choice.layouts import first_that_fits, plan_layouts
from grove_megatron.planner.choice.remedies import remedies
from grove_megatron.planner.memory import largest, stage_memory
from grove_megatron.planner.pages.front import Asked, asked
from grove_megatron.planner.rules import validity
from grove_megatron.planner.sizes import sizes_of
from grove_megatron.planner.speed.cluster import GIB, Cluster
from grove_megatron.planner.speed.machines import machine
from grove_megatron.planner.speed.step import step

MODEL = (
    "--num-layers 6 --hidden-size 256 --num-attention-heads 8 --num-query-groups 4 "
    "--group-query-attention --num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 128 "
    "--ffn-hidden-size 512 --swiglu --disable-bias-linear --max-position-embeddings 4096 "
    "--vocab-size 1000 --tokenizer-type NullTokenizer --moe-token-dispatcher-type alltoall "
    "--grove-num-groups 4 --grove-adjugate-ffn-hidden-size 32"
)
JOB = f"{MODEL} --seq-length 2048 --global-batch-size 16 --bf16 --use-distributed-optimizer"


def of(words: str) -> Asked:
    return asked(words.split())


def cluster(gpus: int, per_node: int = 4, gib: float = 80) -> Cluster:
    kind = machine("h100")
    nodes, here = max(1, gpus // per_node), min(gpus, per_node)
    return Cluster(machine=kind, nodes=nodes, per_node=here, memory=gib * GIB)


def test_every_valid_layout_is_found() -> None:
    """Of 8 GPUs, tried one by one."""
    ranks, per_node = 8, 4
    plans = plan_layouts(of(JOB).job, cluster(ranks, per_node), every=True)
    found = {frozenset(_pairs(one.flags)) for one in plans.ranked}
    assert len(found) == len(plans.ranked)
    sizes = (1, 2, 4, 8)
    wanted, args = set(), of(JOB).job.args
    for tensor, stages, context, experts, chunks, micro, two_hops in product(
        (1, 2, 4), (1, 2, 4, 8), (1, 2), sizes, (None, 2, 3, 6), sizes, (False, True)
    ):
        for split in {1, tensor}:
            counted = stages in (4, 8)
            values = {
                "tensor_model_parallel_size": tensor,
                "context_parallel_size": context,
                "pipeline_model_parallel_size": stages,
                "sequence_parallel": tensor > 1,
                "expert_model_parallel_size": experts,
                "expert_tensor_parallel_size": split,
                "num_virtual_stages_per_pipeline_rank": chunks,
                "account_for_embedding_in_pipeline_split": counted,
                "account_for_loss_in_pipeline_split": counted,
                "micro_batch_size": micro,
                "grove_hierarchical_dispatch": two_hops,
            }
            if two_hops and (experts * split <= per_node or split >= per_node):
                continue
            vars(args).update(values)
            if not validity.problems(args, ranks, per_node):
                wanted.add(frozenset(_pairs(layouts.words(values))))
    assert found == wanted
    assert len(wanted) > 100


def _pairs(flags: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Each flag with its value."""
    starts = [i for i, word in enumerate(flags) if word.startswith("--")]
    return [flags[i:j] for i, j in zip(starts, [*starts[1:], len(flags)], strict=True)]


def test_a_layout_is_what_its_flags_say() -> None:
    job = of(JOB)
    on = cluster(16)
    plans = plan_layouts(job.job, replace(on, price=2.0))
    assert [one.per_gpu for one in plans.ranked] == sorted(
        (one.per_gpu for one in plans.ranked), reverse=True
    )
    for one in plans.ranked[::40]:
        words = [*JOB.split(), *one.flags]
        again = asked(words, as_given=True).job
        assert validity.problems(again.args, 16, 4) == []
        sizes = sizes_of(again.args, again.parts, 16, again.tokens)
        assert sizes == one.sizes
        memories = stage_memory(sizes)
        assert one.memory == memories[largest(memories)]
        taken = step(sizes, on)
        assert one.seconds == pytest.approx(taken.total)
        assert one.tokens_per_second == pytest.approx(16 * 2048 / taken.total)
        assert one.cost == pytest.approx(16 * 2.0 / 3600 / one.tokens_per_second * 1e12)
        assert 0 < one.mfu < 1


def test_what_is_given_stays() -> None:
    fixed = "--pipeline-model-parallel-size 2 --micro-batch-size 2 --recompute-granularity full "
    fixed += "--recompute-method block --recompute-num-layers 1"
    plans = plan_layouts(of(f"{JOB} {fixed}").job, cluster(8))
    assert plans.ranked
    for one in plans.ranked:
        assert one.sizes.layout.pipeline == 2
        assert one.sizes.training.micro_batch == 2
        assert one.sizes.training.recompute_layers == 1
    tensors = {one.sizes.layout.tensor for one in plans.ranked}
    assert tensors == {1, 2, 4}


def test_tensor_parallelism_stays_where_the_fast_link_is() -> None:
    plans = plan_layouts(of(JOB).job, cluster(8, per_node=2))
    assert {one.sizes.layout.tensor for one in plans.ranked} == {1, 2}


def test_recomputation_is_the_least_that_fits() -> None:
    sizes = "--tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 "
    sizes += "--context-parallel-size 1 --expert-model-parallel-size 1 --micro-batch-size 8"
    job = of(f"{JOB} {sizes}").job
    by_memory = {}
    for gib in (80.0, 1.5, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
        plans = plan_layouts(job, cluster(1, gib=gib))
        if plans.ranked:
            (one,) = plans.ranked
            by_memory[gib] = sorted(one.sizes.training.recompute)
            assert one.memory.with_margin <= gib * GIB
    kinds = [*by_memory.values()]
    assert kinds[0] == []
    assert ["full"] in kinds
    assert kinds == sorted(kinds, key=[[], ["moe"], ["full"]].index)


def test_parallel_sizes_are_tried_in_one_way_first_where_there_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job, on = of(JOB).job, cluster(16)
    every = plan_layouts(job, on, every=True)
    monkeypatch.setattr(layouts, "_EACH", 10)
    monkeypatch.setattr(layouts, "_BEST", 20)
    some = plan_layouts(job, on)
    assert len(some.ranked) < len(every.ranked) / 2
    assert some.ranked[0].per_gpu >= 0.98 * every.ranked[0].per_gpu


def test_refusals_are_counted_by_reason() -> None:
    fixed = "--tensor-model-parallel-size 1 --expert-model-parallel-size 8"
    plans = plan_layouts(of(f"{JOB} {fixed}").job, cluster(8))
    assert not plans.ranked
    assert sum(count for count, _ in plans.reasons) == len(plans.refused)
    said = [str(problem) for _, problem in plans.reasons]
    reason = "--expert-model-parallel-size (8) does not divide --grove-num-groups (4)"
    assert [line for line in said if line.startswith(reason)]


def test_a_dense_model_has_layouts_too() -> None:
    dense = MODEL[: MODEL.index("--num-experts")] + MODEL[MODEL.index("--ffn-hidden") :]
    dense = dense[: dense.index("--moe-token")]
    plans = plan_layouts(of(f"{dense} --seq-length 2048 --global-batch-size 16").job, cluster(8))
    assert {one.sizes.layout.expert for one in plans.ranked} == {1}
    assert {one.sizes.layout.tensor for one in plans.ranked} == {1, 2, 4}


ONE_RANK = "--tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 "
ONE_RANK += "--expert-model-parallel-size 1"
SELECTIVE = "--recompute-granularity selective --micro-batch-size 8"


@pytest.mark.parametrize(
    ("flags", "gib", "begins"),
    [
        ("", 0.03, ["16 GPUs (4 nodes)", "--seq-length 512", "--grove-train-only adjugates"]),
        (ONE_RANK, 0.07, ["leave out --tensor-model-parallel-size, --pipeline-model", "16 GPUs"]),
        (SELECTIVE, 0.15, ["leave out --recompute-granularity", "--micro-batch-size 1"]),
        (f"{SELECTIVE} {ONE_RANK}", 0.05, ["leave out --tensor-model-parallel-size, "]),
    ],
)
def test_the_nearest_changes_that_would_do(flags: str, gib: float, begins: list[str]) -> None:
    job, on = of(f"{JOB} {flags}").job, cluster(8, gib=gib)
    assert first_that_fits(job, on) is None
    found = remedies(job, on)
    assert len(found) <= 3
    for one, begin in zip(found, begins, strict=False):
        assert one.change.startswith(begin), [each.change for each in found]
    for one in found:
        assert one.planned.memory.with_margin <= gib * GIB


def test_dividing_the_optimizer_comes_first() -> None:
    fixed = "--pipeline-model-parallel-size 2"
    divided = of(f"{JOB} {fixed}").job
    whole = of(f"{JOB} {fixed}".replace("--use-distributed-optimizer ", "")).job
    between = [
        on
        for gib in (0.08, 0.07, 0.06, 0.05, 0.045, 0.04)
        if first_that_fits(whole, on := cluster(8, gib=gib)) is None
        and first_that_fits(divided, on) is not None
    ]
    first, *_ = remedies(whole, between[0])
    assert first.change.startswith("--use-distributed-optimizer")


STOCK, GROUPED = MODEL.partition(" --grove")[0], "--num-query-groups 4 --group-query-attention"
LATENT = (
    "--multi-latent-attention --q-lora-rank 64 --kv-lora-rank 32 --qk-head-dim 16 "
    "--qk-pos-emb-head-dim 8 --v-head-dim 16"
)


def test_layers_that_do_not_divide_leave_the_last_stage_fewer() -> None:
    """As DeepSeek-V3's 61, which neither stages nor stages with two places more divide."""
    words = JOB.replace("--num-layers 6", "--num-layers 13")
    plans = plan_layouts(of(f"{words} --pipeline-model-parallel-size 4").job, cluster(8))
    assert plans.ranked
    assert {one.sizes.layout.last_layers for one in plans.ranked} == {1}
    # 4, 4, 4 and 1: no chunk of the last stage can be a half.
    assert {one.sizes.layout.virtual for one in plans.ranked} == {1}
    words = JOB.replace("--num-layers 6", "--num-layers 14")
    plans = plan_layouts(of(f"{words} --pipeline-model-parallel-size 4").job, cluster(8))
    assert {one.sizes.layout.virtual for one in plans.ranked} == {1, 2, 4}


@pytest.mark.parametrize("words", [STOCK, f"{STOCK.replace(GROUPED, '')} {LATENT}"])
def test_many_layouts_of_any_model_are_timed_in_two_rounds(words: str, monkeypatch) -> None:
    monkeypatch.setattr(layouts, "_EACH", 10)
    monkeypatch.setattr(layouts, "_BEST", 5)
    more = "--seq-length 2048 --global-batch-size 16 --bf16 --use-distributed-optimizer"
    plans = plan_layouts(of(f"{words} {more}").job, cluster(16, 8))
    assert plans.ranked
    # What both rounds come upon is refused once.
    assert plans.refused
    assert len(plans.refused) == len({words for words, _ in plans.refused})


def test_a_busier_rank_takes_longer_and_needs_more() -> None:
    job = of(f"{JOB} --expert-model-parallel-size 4").job
    even, uneven = (
        plan_layouts(replace(job, imbalance=times), cluster(8)).ranked for times in (1.0, 1.5)
    )
    slower = {one.flags: one for one in uneven}
    for one in even[:5]:
        other = slower[one.flags]
        # The host is what this model waits for, whatever its rows.
        assert other.step["experts"] > one.step["experts"]
        assert other.memory.total > one.memory.total
