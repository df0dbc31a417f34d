"""Seconds of the exchanges between ranks.

A group is so many ranks, each ``stride`` from the next in the order of the job's ranks, which is
tensor, context, data, pipeline parallel, and for experts tensor, expert, data, pipeline.

Ring collectives send (n-1)/n of their bytes over each link of a ring. Between domains a group has
as many network cards as it has ranks in one. All-to-all goes directly: what stays in the domain and
what leaves it go at the same time.
"""

from dataclasses import dataclass

from .cluster import Cluster, Link


@dataclass(frozen=True, kw_only=True)
class Group:
    """Ranks that exchange.

    Attributes:
        size: ranks.
        stride: from one to the next.
    """

    size: int
    stride: int = 1

    def inside(self, cluster: Cluster) -> int:
        """Ranks of it in one domain; nodes are taken so that a group which fits lies in one."""
        return max(1, min(self.size, cluster.domain // self.stride))

    def on_node(self, cluster: Cluster) -> int:
        """Ranks of it on one node."""
        return max(1, min(self.size, cluster.per_node // self.stride))


def _ring(cluster: Cluster, group: Group) -> tuple[Link, float]:
    """The slowest link of a ring, and how many of them work at once."""
    inside = group.inside(cluster)
    if inside == group.size:
        return cluster.machine.near, 1.0
    near, far = cluster.machine.near, cluster.machine.far
    return far, min(float(inside), near.rate / far.rate)


def collective(cluster: Cluster, name: str, size: float, group: Group) -> float:
    """All-gather or reduce-scatter.

    Args:
        name: ``all_gather`` or ``reduce_scatter``; see :func:`all_reduce`.
        size: bytes of all ranks' parts together.
    """
    if group.size == 1:
        return 0.0
    link, links = _ring(cluster, group)
    return link.seconds(name, size * (group.size - 1) / group.size / links, group.size)


def all_reduce(cluster: Cluster, size: float, group: Group) -> float:
    """Sum of tensors of so many bytes, which go round twice."""
    return collective(cluster, "all_reduce", 2 * size, group)


def all_to_all(cluster: Cluster, near: float, far: float, group: Group) -> float:
    """A rank sends so many bytes to others of its domain, and so many out of it, at once."""
    return _longer(cluster, near, far, group, "all_to_all")


def two_hops(cluster: Cluster, near: float, far: float, group: Group) -> float:
    """Out of the node first, and from there to its ranks, in two exchanges."""
    machine = cluster.machine
    beyond = group.inside(cluster) < group.size
    out = machine.far if beyond else machine.near
    first = out.seconds("all_to_all", far, group.size) if far else 0.0
    second = machine.near.seconds("all_to_all", near, group.on_node(cluster)) if near else 0.0
    return first + second


def fused(cluster: Cluster, near: float, far: float, group: Group) -> float:
    """The same in one kernel, which sends on while it receives (DeepEP, HybridEP)."""
    return _longer(cluster, near, far, group, "fused")


def _longer(cluster: Cluster, near: float, far: float, group: Group, name: str) -> float:
    machine, inside = cluster.machine, group.inside(cluster)
    return max(
        machine.near.seconds(name, near, inside) if near else 0.0,
        machine.far.seconds(name, far, group.size) if far else 0.0,
    )


def point_to_point(cluster: Cluster, size: float, stride: int) -> float:
    """Bytes to the rank ``stride`` further on."""
    machine = cluster.machine
    link = machine.near if stride < cluster.domain else machine.far
    return link.seconds("point_to_point", size)


def to_the_next(cluster: Cluster, size: float, group: Group) -> float:
    """Every rank of a group sends bytes to the next of it."""
    machine = cluster.machine
    link = machine.near if group.inside(cluster) == group.size else machine.far
    return link.seconds("point_to_point", size)
