"""What a dispatch sends, token by token in plain loops, without any plan."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grove_megatron.simulate.sizes import Sizes


@dataclass
class Listed:
    """A routing that is a list: of every rank its tokens, of every token its experts."""

    tokens: list[list[list[int]]]
    topk: int
    layers: tuple[str, ...] = ("1",)
    steps: int = 1

    def experts(self, layer: str, step: int, rank: int) -> Tensor:
        lists = [one + [-1] * (self.topk - len(one)) for one in self.tokens[rank]]
        return torch.tensor(lists, dtype=torch.int64).reshape(len(lists), self.topk)


@dataclass
class Moved:
    """(from, to): rows and pairs on them."""

    rows: Counter[tuple[int, int]] = field(default_factory=Counter)
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)

    def row(self, source: int, destination: int, pairs: int) -> None:
        self.rows[source, destination] += 1
        self.pairs[source, destination] += pairs

    def by_distance(self, sizes: Sizes, which: int, of: str) -> list[list[int]]:
        """[R][3], as ``flow.Flow`` has it; ``which``: 0 of the senders, 1 of the receivers."""
        found = [[0, 0, 0] for _ in range(sizes.ranks)]
        for ends, count in getattr(self, of).items():
            a, b = ends
            far = 0 if a == b else 1 if a // sizes.per_node == b // sizes.per_node else 2
            found[ends[which]][far] += count
        return found


def by_hand(routing: Listed, sizes: Sizes, order: Iterable[int] | None = None) -> dict[str, Any]:
    """{flat, two_hops, stock: Moved; node_rows; pairs, adjugate_pairs: of every rank}."""
    slot = {e: s for s, e in enumerate(order or range(sizes.experts))}
    local, node = sizes.experts // sizes.ranks, sizes.per_node
    flat, hops, stock = Moved(), Moved(), Moved()
    node_rows = 0
    pairs, adjugates = Counter[int](), Counter[int]()
    for source, tokens in enumerate(routing.tokens):
        for chosen in tokens:
            slots = [slot[e] for e in chosen]
            ranks = Counter(s // local for s in slots)
            nodes = Counter(s // local // node for s in slots)
            node_rows += len(nodes)
            for there, count in nodes.items():
                hops.row(source, there * node + source % node, count)
            for rank, count in ranks.items():
                flat.row(source, rank, count)
                hops.row(rank // node * node + source % node, rank, count)
                pairs[rank] += count
            for s in slots:
                stock.row(source, s // local, 1)
            if sizes.groups:
                for group in {s * sizes.groups // sizes.experts for s in slots}:
                    adjugates[group * sizes.ranks // sizes.groups] += 1
    of_ranks = range(sizes.ranks)
    return {
        "flat": flat,
        "two_hops": hops,
        "stock": stock,
        "node_rows": node_rows,
        "pairs": [pairs[r] for r in of_ranks],
        "adjugate_pairs": [adjugates[r] for r in of_ranks],
    }
