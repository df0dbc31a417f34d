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
        """Ranks of it in one domain."""
        return max(1, min(self.size, cluster.domain // self.stride))


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
        name: ``all_gather`` or ``reduce_scatter``.
        size: bytes of all ranks' parts together.
    """
    if group.size == 1:
        return 0.0
    link, links = _ring(cluster, group)
    return link.seconds(name, size * (group.size - 1) / group.size / links, group.size)


def all_reduce(cluster: Cluster, size: float, group: Group) -> float:
    """Sum of tensors of so many bytes."""
    if group.size == 1:
        return 0.0
    link, links = _ring(cluster, group)
    return link.seconds("all_reduce", 2 * size * (group.size - 1) / group.size / links, group.size)


def all_to_all(cluster: Cluster, near: float, far: float, group: Group) -> float:
    """A rank sends so many bytes to others of its domain, and so many out of it."""
    machine, inside = cluster.machine, group.inside(cluster)
    both = [machine.near.seconds("all_to_all", near, inside) if near else 0.0]
    both.append(machine.far.seconds("all_to_all", far, group.size) if far else 0.0)
    return max(both)


def point_to_point(cluster: Cluster, size: float, stride: int) -> float:
    """Bytes to the rank ``stride`` further on."""
    machine = cluster.machine
    link = machine.near if stride < cluster.domain else machine.far
    return link.seconds("point_to_point", size)
