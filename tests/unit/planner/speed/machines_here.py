"""A machine of round numbers, and clusters of it."""

from dataclasses import replace
from typing import Any

from grove_megatron.planner.speed.cluster import GIB, Cluster, Link, Machine

ROUND = Machine(
    name="round",
    memory=80 * GIB,
    peak={"bf16": 1e15, "fp8": 2e15},
    faster=2.0,
    achieved=5e14,
    grouped=4e14,
    attention=(1e15, 8e14),
    bandwidth=1e12,
    launch=0.0,
    graphed=0.0,
    host=0.0,
    occupied=0.25,
    domain=8,
    per_node=8,
    near=Link(rate=4e11, latency=0.0),
    far=Link(rate=5e10, latency=0.0),
)


def cluster(nodes: int = 1, per_node: int = 8, **machine: Any) -> Cluster:
    found = replace(ROUND, **machine)
    return Cluster(machine=found, nodes=nodes, per_node=per_node, memory=found.memory, slack=1.0)
