"""What a job would run on: a kind of GPU with what was measured of it, and how many of them.

Rates are of one GPU, bytes per second one way. What nobody published of a machine is a constant of
:mod:`.machines`, the same for all.
"""

from dataclasses import dataclass, field
from functools import cached_property

from ...checks.problem import Problem

GIB = 2**30
SLACK = 1.037
"""What a step takes of the sum of its parts where nobody has measured one on the cluster: what the
row of ``public/rows.toml`` that calibrates took."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Link:
    """How ranks reach each other.

    Attributes:
        rate: bytes per second one way that a GPU can send.
        latency: seconds before the first byte.
        shares: of that rate what a collective was measured to reach, by its name in
            :mod:`.transfers`; ``default`` for the others.
        fixed: seconds that a collective takes beside its bytes, likewise; ``latency`` by default.
        hops: seconds more for every further rank, likewise; none by default.
    """

    rate: float
    latency: float
    shares: dict[str, float] = field(default_factory=dict)
    fixed: dict[str, float] = field(default_factory=dict)
    hops: dict[str, float] = field(default_factory=dict)

    def seconds(self, name: str, size: float, ranks: int = 2) -> float:
        """Of a collective of so many ranks, each of which sends so many bytes."""
        share = self.shares.get(name, self.shares.get("default", 1.0))
        hops = (ranks - 1) * self.hops.get(name, 0.0)
        return size / (self.rate * share) + self.fixed.get(name, self.latency) + hops


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A matrix product that was measured.

    Attributes:
        pass_: ``forward``, ``input`` or ``weight``: which of the three products of a linear layer.
        groups: experts whose products are one call; 1 for a plain one.
        rows, inner, outer: of one expert: tokens, width of the input, width of the output.
        flops: a second, measured.
    """

    pass_: str
    groups: int
    rows: int
    inner: int
    outer: int
    flops: float


@dataclass(frozen=True, kw_only=True)
class TimedAttention:
    """Attention of one sequence that was measured, causal.

    Attributes:
        backward: or forward.
        length, heads, width: tokens, query heads, widths of keys and values added up.
        flops: a second, counted as if nothing were masked.
    """

    backward: bool
    length: int
    heads: int
    width: int
    flops: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Machine:
    """A kind of GPU, and the links between them.

    Attributes:
        name: of its file.
        memory: bytes.
        peak: FLOPs a second of dense products by precision, ``bf16`` and ``fp8``, as specified.
        faster: of fp8 products over bf16 ones, as measured.
        achieved: of large bf16 products, as a job reaches them.
        grouped: of large grouped bf16 products.
        attention: of causal attention, counted as if nothing were masked: forward, backward.
        bandwidth: bytes a second that memory-bound kernels reach.
        launch, graphed: seconds between a kernel and the next, and in a CUDA graph.
        host: seconds that the host takes to start a kernel, without CUDA graphs.
        occupied: share of the processors that an exchange of rows takes from what goes beside it.
        domain: GPUs that the fast link reaches.
        per_node: GPUs of a node.
        near, far: the link inside such a domain, and between them.
        products, attentions: what was measured shape by shape.
        sources: where each of these numbers is from, by its name in the file.
    """

    name: str
    memory: float
    peak: dict[str, float]
    faster: float
    achieved: float
    grouped: float
    attention: tuple[float, float]
    bandwidth: float
    launch: float
    graphed: float
    host: float
    occupied: float
    domain: int
    per_node: int
    near: Link
    far: Link
    products: tuple[Timed, ...] = field(default=(), repr=False)
    attentions: tuple[TimedAttention, ...] = field(default=(), repr=False)
    sources: dict[str, str] = field(default_factory=dict, repr=False)

    @cached_property
    def shapes(self) -> dict[tuple[str, bool], tuple[Timed, ...]]:
        """The measured products by pass, and whether they are grouped."""
        kinds = sorted({(one.pass_, one.groups > 1) for one in self.products})
        return {
            kind: tuple(one for one in self.products if (one.pass_, one.groups > 1) == kind)
            for kind in kinds
        }


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes of one kind.

    Attributes:
        nodes, per_node: how many, and GPUs of each.
        memory: bytes of a GPU that the job may use; by default all.
        price: of a GPU and hour, in whatever currency; None: not known.
        slack: what a step takes of the sum of its parts; see calibrate.py.
    """

    machine: Machine
    nodes: int
    per_node: int
    memory: float
    price: float | None = None
    slack: float = SLACK

    @property
    def gpus(self) -> int:
        return self.nodes * self.per_node

    @property
    def domain(self) -> int:
        """Neighbouring ranks that reach each other by the fast link."""
        if self.machine.domain > self.machine.per_node:
            # Nodes of a rack are joined.
            return min(self.machine.domain // self.per_node * self.per_node, self.gpus)
        return min(self.machine.domain, self.per_node)


def cluster_problems(cluster: Cluster) -> list[Problem]:
    """Numbers that no cluster has, of those that are no machine's."""
    positive = {
        "nodes": cluster.nodes,
        "gpus_per_node": cluster.per_node,
        "memory_gib": cluster.memory / GIB,
    }
    if cluster.price is not None:
        positive["price"] = cluster.price
    fix = "say what the cluster has"
    return [
        Problem(name, f"{value:g}", f"is not above 0; {fix}")
        for name, value in positive.items()
        if not 0 < value < float("inf")
    ]
