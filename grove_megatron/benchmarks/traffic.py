"""What crosses between ranks: every collective of a computation, counted below its caller.

torch.distributed hands each collective to the dispatcher as a ``c10d`` operator, whoever called it
and under whatever name. Reading them there counts both sides of a comparison in the same way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Argument whose size is what a rank hands over, by operator, and how many times.
_SENT: dict[str, tuple[int, int]] = {
    "alltoall_base_": (1, 1),
    "alltoall_": (1, 1),
    "_allgather_base_": (0, 1),  # the input, once for every rank: the size of the output
    "allgather_": (0, 1),
    "_reduce_scatter_base_": (1, 1),
    "reduce_scatter_": (1, 1),
    "allreduce_": (0, 2),  # a reduce-scatter and an all-gather
    "broadcast_": (0, 1),
}
_SILENT = ("barrier", "monitored_barrier_")


@dataclass(frozen=True)
class Sent:
    """One collective as this rank saw it; what it sends to itself counts like the rest.

    Attributes:
        operator: name of the c10d operator.
        sent_bytes: handed over.
        rows: of hidden size, by the rank that gets them; None where the collective is not one of
            rows.
    """

    operator: str
    sent_bytes: int
    rows: dict[int, int] | None


class Collectives(TorchDispatchMode):
    """Lists the collectives that run while it is active.

    Args:
        row_bytes: of one token's hidden state. An all-to-all of a floating-point matrix whose rows
            are at least as wide carries hidden states; what else is in such a row, and every
            other collective, is metadata.
    """

    def __init__(self, row_bytes: int) -> None:
        super().__init__()
        self.row_bytes = row_bytes
        self.sent: list[Sent] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func.namespace == "c10d":
            self._count(func.overloadpacket.__name__, args)
        call: Callable[..., Any] = func
        return call(*args, **(kwargs or {}))

    def _count(self, operator: str, args: tuple[Any, ...]) -> None:
        if operator in _SILENT:
            return
        if operator not in _SENT:
            raise NotImplementedError(f"collective ({operator}) is not in the table of traffic.py")
        place, times = _SENT[operator]
        tensors = [t for t in tree_leaves(args[place]) if isinstance(t, torch.Tensor)]
        sent_bytes = times * sum(t.numel() * t.element_size() for t in tensors)
        rows = None
        if operator.startswith("alltoall") and all(self._carries_hidden(t) for t in tensors):
            rows = _rows_by_rank(args)
        self.sent.append(Sent(operator, sent_bytes, rows))

    def _carries_hidden(self, t: torch.Tensor) -> bool:
        wide = t.dim() == 2 and t.shape[1] * t.element_size() >= self.row_bytes
        return wide and t.is_floating_point()

    @property
    def crossings(self) -> list[int]:
        """Rows of every all-to-all of rows, in order."""
        return [sum(s.rows.values()) for s in self.sent if s.rows is not None]

    @property
    def hops(self) -> list[list[int]]:
        """The same, a list for every set of ranks they went to, in the order of first use."""
        by_ranks: dict[tuple[int, ...], list[int]] = {}
        for s in self.sent:
            if s.rows is not None:
                by_ranks.setdefault(tuple(s.rows), []).append(sum(s.rows.values()))
        return list(by_ranks.values())

    def leaving(self, ranks_per_node: int) -> int:
        """Rows of all of them together that go to another node than that of this rank."""
        own = dist.get_rank() // ranks_per_node
        return sum(
            rows
            for s in self.sent
            for rank, rows in (s.rows or {}).items()
            if rank // ranks_per_node != own
        )

    @property
    def total_bytes(self) -> int:
        return sum(s.sent_bytes for s in self.sent)

    @property
    def metadata_bytes(self) -> int:
        """Everything that is not a hidden state."""
        return self.total_bytes - sum(self.crossings) * self.row_bytes


def _rows_by_rank(args: tuple[Any, ...]) -> dict[int, int]:
    """{rank: rows for it}, from the arguments of an all-to-all: output, input, group, ..."""
    ranks = dist.get_process_group_ranks(dist.ProcessGroup.unbox(args[2]))
    if isinstance(args[1], torch.Tensor):
        # Followed by the splits of output and input; none means even ones.
        splits = args[4] or [args[1].shape[0] // len(ranks)] * len(ranks)
    else:
        splits = [t.shape[0] for t in args[1]]
    return dict(zip(ranks, splits, strict=True))
