"""Layouts planned for a made-up cluster, as a page gets them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from grove_megatron.model.architecture import Model
from grove_megatron.planner.choice.layouts import Planned
from grove_megatron.planner.inputs import Layout, Sizes, Training
from grove_megatron.planner.memory import largest, stage_memory
from grove_megatron.planner.pages.planned import Comparison
from grove_megatron.planner.speed.cluster import GIB, Cluster, Link
from grove_megatron.planner.speed.machines import machine
from grove_megatron.planner.speed.step import step, tokens_per_second, utilisation

H100 = machine("h100")
# Without latency, so that seconds are bytes over rates.
MACHINE = replace(
    H100,
    near=Link(rate=4e11, latency=0.0),
    far=Link(rate=5e10, latency=0.0),
    sources=H100.sources | {"something_else": "<b>another</b>"},
)
CLUSTER = Cluster(machine=MACHINE, nodes=8, per_node=8, memory=80 * GIB, price=2.0)


def plan(
    model: Model, *, memory_gib: float = 80, cost: float | None = None, **layout: Any
) -> Planned:
    """Of 64 GPUs, 128 samples a step."""
    made = Layout(world=64, sequence_parallel=layout.get("tensor", 1) > 1, **layout)
    training = Training(
        sequence_length=4096, microbatches=128 // made.data, distributed_optimizer=True
    )
    sizes = Sizes(model=model, layout=made, training=training)
    memories = stage_memory(sizes)
    stage = largest(memories)
    memory, took = memories[stage], step(sizes, CLUSTER)
    return Planned(
        sizes=sizes,
        stage=stage,
        memory=memory,
        step=took.parts(),
        tokens_per_second=tokens_per_second(sizes, took.total),
        mfu=utilisation(sizes, CLUSTER, took.total),
        bottleneck=took.bottleneck,
        fits=memory.with_margin <= memory_gib * GIB,
        flags=("--expert-model-parallel-size", str(made.expert)),
        cost=cost,
    )


@cache
def plans(model: Model, memory_gib: float = 80) -> tuple[Planned, ...]:
    """Many layouts, the best first and those that do not fit last."""
    found = [
        plan(
            model,
            tensor=tensor,
            pipeline=pipeline,
            virtual=virtual,
            expert=expert,
            memory_gib=memory_gib,
        )
        for tensor in (1, 2, 4)
        for pipeline, virtual in ((1, 1), (2, 1), (2, 2), (4, 1), (4, 3))
        for expert in ((1, 2, 4, 8, 16) if model.num_experts else (1,))
    ]
    return tuple(sorted(found, key=lambda one: (not one.fits, -one.tokens_per_second)))


def comparison(found: Sequence[Planned], memory_gib: float = 80, **more: Any) -> Comparison:
    cluster = replace(CLUSTER, memory=memory_gib * GIB)
    return Comparison(**({"title": "it", "plans": found, "cluster": cluster} | more))
