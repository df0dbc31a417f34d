"""The tokens of a folder on the ranks of a job: each has its part of every sequence."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Spread:
    """Rows b * S + s of [T, ...] as [S_here, B, ...] on each of several ranks.

    Contiguous parts that differ by one token at most; the shorter ones are padded, because
    Megatron's layers take equal lengths.
    """

    batch: int
    sequence: int
    rank: int
    ranks: int

    @property
    def length(self) -> int:
        """Tokens of a sequence on a rank, with padding."""
        return -(-self.sequence // self.ranks)

    @property
    def here(self) -> slice:
        """This rank's part of a sequence."""
        start, end = (self.sequence * r // self.ranks for r in (self.rank, self.rank + 1))
        return slice(start, end)

    @property
    def padding(self) -> Tensor | None:
        """[B, S_here] bool, True where padding; None if no rank has any."""
        if self.sequence % self.ranks == 0:
            return None
        padding = torch.ones(self.batch, self.length, dtype=torch.bool)
        padding[:, : self.here.stop - self.here.start] = False
        return padding

    def local(self, rows: Tensor) -> Tensor:
        """This rank's part of [T, H], as [S_here, B, H]; padding is 0."""
        parts = rows.reshape(self.batch, self.sequence, -1)[:, self.here]
        padded = rows.new_zeros(self.batch, self.length, parts.shape[-1])
        padded[:, : parts.shape[1]] = parts
        return padded.transpose(0, 1).contiguous()

    def whole(self, local: Tensor) -> Tensor:
        """All ranks' parts [S_here, B, ...] as fp64 [T, ...]; every rank calls it and gets it."""
        kept = local.detach().double().transpose(0, 1)
        rows = kept.new_zeros(self.batch, self.sequence, *kept.shape[2:])
        rows[:, self.here] = kept[:, : self.here.stop - self.here.start]
        if self.ranks > 1:
            dist.all_reduce(rows)
        return rows.flatten(0, 1)
