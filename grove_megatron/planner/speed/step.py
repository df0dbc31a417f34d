"""Seconds of one training step on a cluster, by part.

A pipeline is as fast as its slowest stage: m microbatches of it, and one of all others to fill and
drain it, the v-th part with v model chunks (Narayanan et al. 2104.04473, section 2.2). Then
gradients are reduced, unless they hide behind a pass, and the optimizer works.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from ...model.architecture import Model
from ...model.parameters import Counts
from ..flops import flops_per_token
from ..inputs import Layout, Sizes, Training
from ..parameters import rank_trained
from ..pipeline import Stage, stages
from .cluster import Cluster
from .transfers import Group, collective, point_to_point
from .work import Pass, Seconds, Work, added, nothing

PARTS = {
    "products": "products of attention and dense layers, logits",
    "attention": "attention",
    "experts": "products of experts",
    "adjugates": "products of adjugates",
    "pointwise": "norms, positions, activations, residuals",
    "router": "router, and rows put in order",
    "loss": "loss",
    "starts": "starts of kernels",
    "host": "GPUs that wait for the host",
    "dispatch": "exchange of rows between expert-parallel ranks",
    "tensor": "exchange of tensor parallelism",
    "context": "exchange of context parallelism",
    "recompute": "what is computed again",
    "pipeline": "exchange between pipeline stages",
    "bubble": "pipeline stages that wait",
    "gradients": "gradients reduced, parameters gathered",
    "optimizer": "optimizer",
    "other": "what is between the parts",
}
"""In the order of a picture, and in words."""

# What the optimizer reads and writes of a parameter that it owns, beside the state itself twice:
# the gradient and the weight; and of every parameter's gradient, for the norm and to clear it.
_OWNED, _CLEARED = 8, 8


@dataclass(frozen=True)
class Step:
    """Seconds of a step by part of PARTS, those that are not hidden."""

    seconds: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def parts(self) -> dict[str, float]:
        """In the order of PARTS, without those that take nothing."""
        return {part: self.seconds[part] for part in PARTS if self.seconds.get(part)}

    @property
    def bottleneck(self) -> str:
        """What takes most, in words."""
        part = max(self.seconds, key=lambda name: self.seconds[name])
        return f"{PARTS[part]}: {self.seconds[part] / self.total:.0%}"


def step(sizes: Sizes, cluster: Cluster) -> Step:
    """What a step takes.

    Raises:
        ValueError: layers that do not divide over the stages, as :func:`..pipeline.stages`.
    """
    layout, training = sizes.layout, sizes.training
    work = Work(sizes, cluster)
    passes = _stages(work)
    totals = [sum(one.forward.values()) + sum(one.backward.values()) for one in passes]
    slowest = max(range(len(passes)), key=lambda stage: totals[stage])
    both = added(passes[slowest].forward, passes[slowest].backward)
    seconds = {part: value * training.microbatches for part, value in both.items()}
    if training.overlapped_experts:
        _hide(seconds, cluster.machine.occupied)
    # The first microbatch comes to the slowest stage, and the last leaves it, by way of the others.
    seconds["bubble"] = (sum(totals) - totals[slowest]) / layout.virtual
    seconds["pipeline"] = _between_stages(work)
    trained = rank_trained(sizes.model, layout, training.train_only)[slowest]
    seconds["gradients"] = _gradients(work, passes[slowest], trained)
    seconds["optimizer"] = _optimizer(work, trained)
    seconds["other"] = sum(seconds.values()) * (cluster.slack - 1)
    return Step({part: value for part, value in seconds.items() if value})


def _stages(work: Work) -> list[Pass]:
    """A microbatch on every stage."""
    layout, training = work.layout, work.training
    # What the seconds of a layer do not depend on is left out.
    alike = replace(
        layout,
        pipeline=1,
        virtual=1,
        chunk_microbatches=None,
        first_layers=None,
        last_layers=None,
        count_embedding=False,
        count_loss=False,
        custom=None,
        world=layout.tensor * layout.context * layout.expert * layout.expert_tensor,
    )
    alone = replace(training, microbatches=1, recompute_layers=None)
    kinds, output = _layers(work.model, alike, alone, work.cluster)
    return [_stage(work, stage, kinds, output) for stage in stages(work.model, layout)]


@lru_cache(maxsize=1024)
def _layers(
    model: Model, layout: Layout, training: Training, cluster: Cluster
) -> tuple[dict[tuple[bool, bool], Pass], Pass]:
    """Of a kind each, computed again or not, and the logits."""
    work = Work(Sizes(model=model, layout=layout, training=training), cluster)
    kinds = {
        (kind, again): work.layer(kind, again=again)
        for kind in {*model.moe_layers, model.mtp_is_moe}
        for again in (True, False)
    }
    return kinds, work.output()


def _stage(work: Work, stage: Stage, kinds: dict[tuple[bool, bool], Pass], output: Pass) -> Pass:
    model, limit = work.model, work.training.recompute_layers
    counts: dict[tuple[bool, bool], int] = {}
    for chunk in stage.chunks:
        for place, layer in enumerate(chunk):
            kind = (model.moe_layers[layer], limit is None or place < limit)
            counts[kind] = counts.get(kind, 0) + 1
    whole = nothing()
    for kind, count in counts.items():
        whole += kinds[kind].times(count)
    if stage.mtp:
        # Not among the first so many layers of a chunk.
        mtp = kinds[model.mtp_is_moe, limit is None]
        whole += (mtp + work.mtp_projection() + output).times(model.mtp_depths)
    return whole + output if stage.output else whole


def _hide(seconds: Seconds, occupied: float) -> None:
    """The exchange of rows goes beside what another microbatch computes, and takes a part of the
    processors from it."""
    exchange = seconds.get("dispatch", 0.0)
    hides = sum(value for part, value in seconds.items() if part != "dispatch")
    seconds["dispatch"] = exchange * occupied + max(0.0, exchange - hides)


def _between_stages(work: Work) -> float:
    """Hidden states forward and gradients back, for every microbatch and model chunk."""
    layout, training = work.layout, work.training
    if layout.pipeline == 1:
        return 0.0
    stride = layout.world // layout.pipeline
    once = point_to_point(work.cluster, work.hidden, stride)
    # With virtual stages they go beside the next chunk, but for those that fill and drain it.
    beside = training.overlapped_pipeline
    times = layout.pipeline - 1 + (0 if beside else training.microbatches * layout.virtual)
    return 2 * once * times


def _gradients(work: Work, slowest: Pass, count: Counts) -> float:
    """Reduced over the ranks with the same weights, and the weights gathered from them."""
    layout, training = work.layout, work.training
    dense = Group(size=layout.dense_copies, stride=layout.tensor)
    expert = Group(size=layout.expert_copies, stride=layout.expert_tensor * layout.expert)
    reduce = gather = 0.0
    for parameters, group in ((count.dense, dense), (count.experts + count.adjugates, expert)):
        gradient = parameters * training.precision.gradient
        weight = parameters * training.precision.weight
        reduce += collective(work.cluster, "reduce_scatter", gradient, group)
        if training.distributed_optimizer:
            gather += collective(work.cluster, "all_gather", weight, group)
        else:
            # Gradients are gathered in place of weights, and with their reduction.
            reduce += collective(work.cluster, "all_gather", gradient, group)
    if training.overlapped_gradients:
        reduce = max(0.0, reduce - sum(slowest.backward.values()))
    if training.overlapped_parameters:
        gather = max(0.0, gather - sum(slowest.forward.values()))
    return reduce + gather


def _optimizer(work: Work, count: Counts) -> float:
    """Its state is read and written once."""
    layout, training = work.layout, work.training
    experts = count.experts + count.adjugates
    own = float(count.total)
    if training.distributed_optimizer:
        own = count.dense / layout.dense_copies + experts / layout.expert_copies
        own *= training.optimizer_instances
    state = training.precision.main_weight + training.precision.moments
    moved = own * (2 * state + _OWNED) + count.total * _CLEARED
    return moved / work.cluster.machine.bandwidth


def tokens_per_second(sizes: Sizes, seconds: float) -> float:
    """Of the whole job."""
    training = sizes.training
    samples = training.micro_batch * training.microbatches * sizes.layout.data
    return samples * training.sequence_length / seconds


def utilisation(sizes: Sizes, cluster: Cluster, seconds: float) -> float:
    """Model FLOPs utilisation: those of :mod:`..flops` over the peak of all GPUs."""
    rate = tokens_per_second(sizes, seconds) / sizes.layout.world
    flops = rate * flops_per_token(sizes.model, sizes.training.sequence_length)
    return flops / cluster.machine.peak["fp8" if sizes.training.fp8 else "bf16"]


def with_slack(cluster: Cluster, slack: float) -> Cluster:
    """The same cluster, whose steps take so much longer than their parts."""
    return replace(cluster, slack=slack)
