"""Balance losses of sequences that count what is left after drops, as some authors' code does."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..parts.part import Balance

Counted = Callable[[Balance], Tensor]


class AfterDrops:
    """mean_b E sum_i f_bi P_bi, f the part of a sequence's tokens that count for an expert.

    Args:
        counted: bool [T, E], of what was sent.
        name: among Megatron's metrics.
    """

    coefficient = 1.0

    def __init__(self, counted: Counted, name: str = "after_drops_loss") -> None:
        self.counted, self.name = counted, name

    def __call__(self, balance: Balance) -> Tensor:
        seen, shares_TE = balance.seen, balance.distribution_TE
        experts = shares_TE.shape[1]
        counted_TE = seen.without_padding(self.counted(balance))

        def of_sequences(rows_TE: Tensor) -> Tensor:
            here_BE = rows_TE.reshape(-1, seen.batch_size, experts).sum(0)
            return seen.everywhere(here_BE)

        # Sequences are equally long.
        tokens = seen.everywhere(seen.tokens(shares_TE)).to(shares_TE.dtype) / seen.batch_size
        f_BE = of_sequences(counted_TE.to(shares_TE.dtype)) / tokens
        mean_BE = of_sequences(shares_TE) / tokens
        return balance.whole(experts * (f_BE * mean_BE).sum() / seen.batch_size)


def first_kept(balance: Balance) -> Tensor:
    """The best expert of a token that was sent to it (st-moe-pytorch@d94e65d, by aliasing)."""
    first_T1 = balance.sent.choices_TK[:, :1]
    first_TE = torch.zeros_like(balance.sent.map_TE).scatter(1, first_T1, True)
    return first_TE & balance.sent.map_TE


def dropped_are_of_the_first(balance: Balance) -> Tensor:
    """What was sent; a token without an expert counts for expert 0 (transformers 4.46.3)."""
    counted_TE = balance.sent.map_TE.clone()
    counted_TE[:, 0] |= ~counted_TE.any(1)
    return counted_TE
