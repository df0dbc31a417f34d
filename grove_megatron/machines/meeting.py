"""The ranks of a job, by node, and how they wait for one another before there is a group."""

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ..failure.job_store import from_all_ranks, from_rank_0, node, to_rank_0, world


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """What every rank knows of all; made together, by :meth:`held`.

    Attributes:
        node_of: the node of every rank.
        token: a word that no other job has.
        timeout: how long to wait for others.
    """

    node_of: tuple[str, ...]
    token: str
    timeout: timedelta

    @classmethod
    def held(cls, timeout: timedelta) -> "Meeting":
        """Every rank must call."""
        nodes = to_rank_0(node(), timeout)
        nodes, token = from_rank_0(lambda: (nodes, secrets.token_hex(8)), timeout)
        return cls(node_of=tuple(nodes), token=token, timeout=timeout)

    @property
    def nodes(self) -> list[list[int]]:
        """The ranks of every node, in the order of their first."""
        found: dict[str, list[int]] = {}
        for rank, name in enumerate(self.node_of):
            found.setdefault(name, []).append(rank)
        return [*found.values()]

    @property
    def mine(self) -> str:
        """The node of this rank."""
        return self.node_of[world()[0]]

    @property
    def is_first(self) -> bool:
        """Is this rank the first of its node, which speaks for it?"""
        return self.node_of.index(self.mine) == world()[0]

    def wait(self) -> None:
        """Until all have come here."""
        from_all_ranks([], self.timeout)

    def of_nodes(self, said: Any) -> list[Any]:
        """What the first ranks of all nodes say, on rank 0; every rank must call."""
        return [one for one in to_rank_0(said, self.timeout) if one is not None]

    def told(self, said: Any) -> list[Any]:
        """What the first ranks of all nodes say, on every rank; every rank must call."""
        heard = self.of_nodes(said)
        told: list[Any] = from_rank_0(lambda: heard, self.timeout)
        return told
