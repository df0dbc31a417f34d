"""What collectives do, for several ranks in one process."""

from collections.abc import Sequence

import torch
from torch import Tensor


def exchange(sent: Sequence[Tensor], counts: Sequence[Sequence[int]]) -> list[Tensor]:
    """All-to-all: destination d gets the d-th slice of every source, in the order of the sources.

    Args:
        sent: what every rank sends, ordered by destination.
        counts: for every rank, how many rows of it go to each rank.
    """
    pieces = [rows.split(list(c)) for rows, c in zip(sent, counts, strict=True)]
    return [torch.cat(column) for column in zip(*pieces, strict=True)]
