"""A plan refuses the layouts that Megatron refuses, and no others."""

import contextlib
import copy
import io
from argparse import Namespace
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.pipeline_parallel.schedules import forward_backward_pipelining_with_interleaving
from torch.nn import Module
from torch.testing._internal.distributed.fake_pg import FakeStore

from grove_megatron.planner.choice.layouts import plan_layouts
from grove_megatron.planner.pages.front import asked
from grove_megatron.planner.report import plan
from grove_megatron.planner.rules import validity
from grove_megatron.planner.sizes import model_chunks
from grove_megatron.planner.speed.cluster import Cluster
from grove_megatron.planner.speed.machines import machine
from grove_megatron.runtime import cpu
from grove_megatron.training.checks import as_launched
from grove_megatron.training.doctor import Diagnosis, examine

from ...conftest import parser
from ..choice.test_layouts import MODEL
from .drawn_layouts import PER_NODE, drawn


def diagnosed(words: list[str], world: int) -> Diagnosis:
    """What Megatron's validation and configuration, and our rules, say of a job."""
    args = copy.deepcopy(parser().parse_args(words))
    as_launched(args)
    with contextlib.redirect_stdout(io.StringIO()), cpu():
        return examine(args, world, "cuda", per_node=PER_NODE)


class Accepted(Exception):
    """The schedule has asked what it asks of microbatches, and begins."""


class Chunk(Module):
    """A model chunk that is asked for its kind when the schedule begins."""

    def __init__(self, config: ModelParallelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def model_type(self) -> None:
        raise Accepted


def refused_at_start(args: Namespace, world: int) -> bool:
    """Do the process groups of a job of so many ranks refuse, or its schedule? Nothing is sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        parallel_state.initialize_model_parallel(
            args.tensor_model_parallel_size,
            args.pipeline_model_parallel_size,
            context_parallel_size=args.context_parallel_size,
            expert_model_parallel_size=args.expert_model_parallel_size,
            expert_tensor_parallel_size=args.expert_tensor_parallel_size,
            num_distributed_optimizer_instances=args.num_distributed_optimizer_instances,
            create_gloo_process_groups=False,
        )
        if model_chunks(args) > 1:
            schedule(args, world)
    except Accepted:
        return False
    except (AssertionError, RuntimeError, ValueError):
        return True
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
    return False


def schedule(args: Namespace, world: int) -> None:
    """Begin the first iteration of virtual stages."""
    stages, chunks = args.pipeline_model_parallel_size, model_chunks(args)
    copies = world // (args.tensor_model_parallel_size * stages * args.context_parallel_size)
    config = ModelParallelConfig(
        pipeline_model_parallel_size=stages,
        virtual_pipeline_model_parallel_size=chunks,
        microbatch_group_size_per_vp_stage=args.microbatch_group_size_per_vp_stage,
        pipeline_dtype=torch.float32,
    )
    with cpu():
        forward_backward_pipelining_with_interleaving(
            forward_step_func=None,
            data_iterator=[None] * chunks,
            model=[Chunk(config) for _ in range(chunks)],
            num_microbatches=args.global_batch_size // (args.micro_batch_size * copies),
            seq_length=args.seq_length,
            micro_batch_size=args.micro_batch_size,
        )


def compare(seed: int, count: int) -> Counter[bool]:
    """How many drawn layouts are valid, and how many are not, which both say of each."""
    verdicts: Counter[bool] = Counter()
    for words, world in drawn(seed, count):
        line = f"{' '.join(words)} on {world}"
        found = diagnosed(words, world)
        job = asked(words, as_given=True).job
        mine = validity.problems(job.args, world, PER_NODE)
        real = bool(found.problems) or refused_at_start(job.args, world)
        said = f"{[*map(str, mine)]}, Megatron {[*map(str, found.problems)]}"
        assert bool(mine) == real, f"{line}: {said}"
        nodes = Cluster(machine=machine("h100"), nodes=1, per_node=world, memory=2.0**40)
        plans = plan_layouts(job, nodes)
        planned = [*plans.ranked, *plans.too_large]
        assert bool(planned) == (not real), line
        if planned:
            (one,) = planned
            assert plan(one.sizes) == found.numbers, line
            assert one.memory.state == found.numbers["memory"]
        verdicts[real] += 1
    return verdicts


def test_drawn_layouts_are_refused_as_megatron_refuses_them() -> None:
    verdicts = compare(seed=1, count=50)
    assert min(verdicts[True], verdicts[False]) >= 15


@pytest.mark.long
def test_more_of_them() -> None:
    verdicts = compare(seed=2, count=250)
    assert min(verdicts[True], verdicts[False]) >= 75


@pytest.mark.long
def test_the_fastest_layouts_have_no_problem_for_doctor() -> None:
    """Pasted behind the flags of a job, which the model's were planned with."""
    job = "--train-iters 10 --lr 1e-3 --mock-data --eval-interval 100"
    here = Cluster(machine=machine("h100"), nodes=2, per_node=4, memory=2.0**36)
    of_model = asked(MODEL.split())
    plans = plan_layouts(of_model.job, here, every=True)
    for one in plans.ranked[:: max(1, len(plans.ranked) // 20)]:
        words = [*MODEL.split(), *job.split(), *of_model.assumed, *one.flags]
        args = copy.deepcopy(parser().parse_args(words))
        as_launched(args)
        with contextlib.redirect_stdout(io.StringIO()), cpu():
            found = examine(args, 8, "cuda", per_node=4)
        assert [*map(str, found.problems)] == [], one.flags
        assert found.numbers == plan(one.sizes)


@pytest.mark.parametrize(
    ("flags", "begin"),
    [
        ("--pipeline-model-parallel-layout tttt|L", "does not begin with the only E"),
        ("--pipeline-model-parallel-layout Ettt|tt", "does not end with the only L"),
        ("--pipeline-model-parallel-layout Ett|tL", "has 3 layers, not --num-layers (4)"),
        ("--pipeline-model-parallel-layout Ett|xttL", "cannot be read: x is none of E, t, m, L"),
        ("--pipeline-model-parallel-layout Ett|ttmL", "has 1 MTP layers, not"),
        ("--pipeline-model-parallel-layout Et|t|ttL", "has 3 stages, not a multiple of"),
        ("--decoder-first-pipeline-num-layers 4", "leave 0 of --num-layers (4) to 1 other"),
        (
            "--decoder-first-pipeline-num-layers 1 --account-for-loss-in-pipeline-split",
            "excludes --account-for-loss-in-pipeline-split (True)",
        ),
        (
            "--num-virtual-stages-per-pipeline-rank 2 --no-overlap-p2p-communication",
            "needs --pipeline-model-parallel-size (2) above 2",
        ),
        (
            "--pipeline-model-parallel-size 3 --decoder-first-pipeline-num-layers 1",
            "leave 3 of --num-layers (4), which are not a multiple of the other stages (2)",
        ),
        (
            "--num-attention-heads 7 --kv-channels 8 --tensor-model-parallel-size 2",
            "does not divide --num-attention-heads (7)",
        ),
        (
            "--tensor-model-parallel-size 2 --grove-num-groups 4 "
            "--grove-adjugate-ffn-hidden-size 15",
            "--grove-adjugate-ffn-hidden-size (15) is not a multiple of --expert-tensor",
        ),
        ("--overlap-param-gather-with-optimizer-step", "needs virtual pipeline stages"),
        ("--tp-comm-overlap", "needs --sequence-parallel (False) with"),
        ("--hierarchical-context-parallel-sizes 2 2", "do not multiply to --context-parallel-size"),
    ],
)
def test_a_layout_is_refused_in_words(flags: str, begin: str) -> None:
    words, _ = next(drawn(1, 1))
    model = words[: words.index("--use-distributed-optimizer")]
    sizes = "--num-layers 4 --pipeline-model-parallel-size 2 --micro-batch-size 1"
    job = asked([*model, *sizes.split(), *flags.split()], as_given=True).job
    job.args.global_batch_size = 8
    said = [*map(str, validity.problems(job.args, 2, PER_NODE))]
    assert [line for line in said if begin in line], said
