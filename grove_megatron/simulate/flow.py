"""What moves between ranks: rows and the routed pairs on them, by how far they go.

Shape suffixes: R ranks, S sources, D destinations; 3 distances: the own rank, the own node, others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

STAYS, ON_NODE, ACROSS = range(3)
"""How far a row goes: nowhere, to another rank of the node, to another node."""


@dataclass(frozen=True)
class Flow:
    """Rows and pairs of one crossing, or of several one after the other.

    Args:
        sent_rows, received_rows: [R, 3] int64, by rank and distance.
        sent_pairs, received_pairs: the routed pairs on them.
    """

    sent_rows: Tensor
    received_rows: Tensor
    sent_pairs: Tensor
    received_pairs: Tensor

    @staticmethod
    def none(ranks: int) -> "Flow":
        """Nothing yet."""
        return Flow(*(torch.zeros(ranks, 3, dtype=torch.int64) for _ in range(4)))

    def add(
        self,
        source_SD: Tensor,
        destination_SD: Tensor,
        rows_SD: Tensor,
        pairs_SD: Tensor,
        node: int,
    ) -> None:
        """Count what goes from ranks to ranks.

        Args:
            source_SD, destination_SD: [S, D] int64, the ranks.
            rows_SD, pairs_SD: [S, D] int64, how much.
            node: ranks of a node.
        """
        here = torch.where(source_SD // node == destination_SD // node, ON_NODE, ACROSS)
        distance = here.masked_fill_(source_SD == destination_SD, STAYS)
        for rank_SD, rows, pairs in (
            (source_SD, self.sent_rows, self.sent_pairs),
            (destination_SD, self.received_rows, self.received_pairs),
        ):
            place = rank_SD.mul(3).add_(distance).flatten()
            rows.view(-1).scatter_add_(0, place, rows_SD.flatten())
            pairs.view(-1).scatter_add_(0, place, pairs_SD.flatten())

    def then(self, other: "Flow") -> "Flow":
        """Both."""
        return Flow(
            self.sent_rows + other.sent_rows,
            self.received_rows + other.received_rows,
            self.sent_pairs + other.sent_pairs,
            self.received_pairs + other.received_pairs,
        )

    def a_row_for_each_pair(self) -> "Flow":
        """As an all-to-all sends it that repeats a token for each of its experts."""
        return Flow(self.sent_pairs, self.received_pairs, self.sent_pairs, self.received_pairs)


def to_everybody(tokens_R: Tensor, node: int) -> Flow:
    """Of an all-gather: every token goes to every rank; pairs do not travel.

    Args:
        tokens_R: [R] int64, tokens of every rank.
        node: ranks of a node.
    """
    ranks = tokens_R.numel()
    of_node = tokens_R.reshape(-1, node).sum(1).repeat_interleave(node)
    sent = torch.stack([tokens_R, (node - 1) * tokens_R, (ranks - node) * tokens_R], 1)
    received = torch.stack([tokens_R, of_node - tokens_R, tokens_R.sum() - of_node], 1)
    return Flow(sent, received, torch.zeros_like(sent), torch.zeros_like(sent))
