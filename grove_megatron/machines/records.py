"""What ranks say of themselves and of their nodes; all of it travels as JSON."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The GPU of a rank, as torch has it.

    Attributes:
        name: its kind, with the compute capability.
        free, total: bytes of its memory.
        count: GPUs that the rank sees.
        uuid: which one of its machine it is.
    """

    name: str
    free: int
    total: int
    count: int
    uuid: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU of a node, as nvidia-smi has it before the job touches it.

    Attributes:
        index: nvidia-smi's.
        uuid: which GPU it is, as :attr:`Gpu.uuid`.
        uncorrected: ECC errors since the driver was loaded that could not be mended; None: not
            said.
        slowed: why its clocks are held down, by nvidia-smi's names; empty where they are not.
        users: processes on it, with the MiB each has.
    """

    index: str
    uuid: str
    uncorrected: int | None
    slowed: tuple[str, ...]
    users: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Node:
    """What one rank says for its node.

    Attributes:
        hostname: of the system.
        resolves: the address that ``hostname`` has on this node; empty where it has none.
        address: where this node speaks from on the way to rank 0.
        interface: the network interface of that address; empty where it is not known.
        chosen: the interfaces that variables choose for gloo and NCCL, by variable.
        memory: bytes of host memory that can be had.
        shared_memory: bytes free in /dev/shm; None where it is not there.
        same: what has to be the same on every node, by name: code, drivers, files.
        cards: its GPUs, those that the job does not have among them.
    """

    hostname: str
    resolves: str
    address: str
    interface: str
    chosen: dict[str, str]
    memory: int
    shared_memory: int | None
    same: dict[str, str]
    cards: tuple[Card, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rank:
    """What every rank says.

    Attributes:
        node: the name of its node, see :func:`..failure.job_store.node`.
        machine: what one boot of one machine has, whatever its containers are named.
        same: what has to be the same on every rank, by name.
        open_files: how many files it may have open.
        says: for its node, on the first rank of every one.
    """

    rank: int
    node: str
    machine: str
    same: dict[str, str]
    open_files: int
    gpu: Gpu | None = None
    says: Node | None = None

    @classmethod
    def unpacked(cls, packed: dict[str, Any]) -> Self:
        """From what ``dataclasses.asdict`` and JSON have made of it."""
        gpu, says = packed["gpu"], packed["says"]
        if says is not None:
            cards = [
                Card(**card | {n: tuple(card[n]) for n in ("slowed", "users")})
                for card in says["cards"]
            ]
            says = Node(**says | {"cards": tuple(cards)})
        return cls(**packed | {"gpu": gpu and Gpu(**gpu), "says": says})


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What a node found of the others.

    Attributes:
        offset: seconds that its clock is ahead of rank 0's; None: rank 0 was not reached.
        uncertainty: half the time of the round trip, in seconds.
        unreachable: why, by node.
    """

    node: str
    offset: float | None
    uncertainty: float
    unreachable: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a node saw of one folder.

    Attributes:
        flag, folder: as given on this node.
        unseen: nodes whose file it did not see, of those that could write one.
        seconds: until it had seen all of them; None where it has not, or not looked.
        filled: is there an order of samples in it already? Of caches alone.
        error: why it could not write its own, and has not looked.
    """

    node: str
    flag: str
    folder: str
    unseen: tuple[str, ...]
    seconds: float | None
    filled: bool = False
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two nodes, or two ranks of one, sending to each other at once.

    Attributes:
        gigabytes: 1e9 bytes a second from the one to the other, while as many came back.
        wrong: did other bytes arrive than were sent?
        ranks: whose connection was the slowest, where nodes have several.
    """

    one: str
    other: str
    gigabytes: float
    wrong: bool = False
    ranks: tuple[int, int] = (0, 0)

    @property
    def names(self) -> str:
        return f"{self.one} and {self.other}"


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """The all-to-all of one expert-parallel group.

    Attributes:
        ranks: of the group.
        seconds: of its slowest rank, the median of several.
        sent: bytes of a rank to all others.
        wrong: (from, to) where other bytes arrived.
    """

    ranks: tuple[int, ...]
    seconds: float
    sent: int
    wrong: tuple[tuple[int, int], ...] = ()

    @property
    def gigabytes(self) -> float:
        """1e9 bytes a second that left every rank."""
        return self.sent / self.seconds / 1e9


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was sent, and how fast.

    Attributes:
        between: pairs of nodes.
        inside: pairs of ranks of one node.
        crossings: of the expert-parallel groups.
        rounds, all_rounds: of pairs of nodes, measured in the time there was, and needed for all.
        inside_rounds, all_inside_rounds: the same of pairs of ranks of a node.
        message: bytes of a message of a pair.
        backend: gloo or nccl.
    """

    between: tuple[Pair, ...] = ()
    inside: tuple[Pair, ...] = ()
    crossings: tuple[Crossing, ...] = ()
    rounds: int = 0
    all_rounds: int = 0
    inside_rounds: int = 0
    all_inside_rounds: int = 0
    message: int = 0
    backend: str = ""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What the job will ask of its machines, as far as it can be planned.

    Attributes:
        device: ``cpu`` or ``cuda``.
        rank_bytes: of the rank that needs most, without a margin; None: not planned.
        loader_bytes: that the data loaders of a rank may have in /dev/shm.
        hierarchical: is a token to be sent to every node once?
    """

    device: str
    rank_bytes: int | None = None
    loader_bytes: int = 0
    hierarchical: bool = False


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All that was found, on rank 0.

    Attributes:
        ranks: every one, in order.
        seen: of folders that the nodes should share.
        bound: seconds in which a file had to be seen.
        per_node: what the launcher says of the ranks of a node; None: nothing.
    """

    ranks: tuple[Rank, ...]
    needs: Needs
    reached: tuple[Reached, ...] = ()
    seen: tuple[Seen, ...] = ()
    bound: float = 0.0
    per_node: int | None = None
    measured: Measured = field(default_factory=Measured)

    @cached_property
    def nodes(self) -> dict[str, list[Rank]]:
        """The ranks of every node, in order."""
        found: dict[str, list[Rank]] = {}
        for rank in self.ranks:
            found.setdefault(rank.node, []).append(rank)
        return found

    @cached_property
    def said(self) -> dict[str, Node]:
        """What was said for every node."""
        return {rank.node: rank.says for rank in self.ranks if rank.says is not None}
