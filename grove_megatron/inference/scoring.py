"""How likely a model finds token ids, at any layout: losses summed over parts of sequences."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import mpu
from torch import Tensor

from ..checkpoint.model_run import ModelRun


@dataclass(frozen=True)
class Row:
    """Token ids, of which those from ``start`` on are scored, each by all before it.

    Args:
        ids: two or more.
        start: 1 or more.
    """

    ids: Sequence[int]
    start: int = 1

    @property
    def count(self) -> int:
        """Tokens that are scored."""
        return len(self.ids) - self.start


def windows(ids: Sequence[int], length: int) -> Iterator[Row]:
    """A text cut so that no part predicts from more than ``length`` tokens.

    Every token but the first is scored once; parts do not see one another.
    """
    for first in range(0, len(ids) - 1, length):
        yield Row(ids[first : first + length + 1])


class Scorer:
    """A model on this rank's part of a job.

    Args:
        run: made for [batch, length].
        batch_size, length: of its inputs.
    """

    def __init__(self, run: ModelRun, batch_size: int, length: int) -> None:
        self._run, self._batch_size, self._length = run, batch_size, length

    def negative_log_likelihoods(self, rows: Sequence[Row]) -> list[float]:
        """Of the scored tokens of every row together, nats; the same on every rank.

        Rows are divided over data-parallel ranks, all of which run equally often: experts of one
        may be asked by the others.
        """
        ranks, rank = mpu.get_data_parallel_world_size(), mpu.get_data_parallel_rank()
        found = torch.zeros(len(rows), dtype=torch.float64, device=torch.cuda.current_device())
        speaks = mpu.is_pipeline_last_stage() and mpu.get_tensor_model_parallel_rank() == 0
        per_pass = self._batch_size * ranks
        for first in range(0, len(rows), per_pass):
            start = first + rank * self._batch_size
            own = list(rows[start : min(start + self._batch_size, len(rows))])
            ids, labels = self._padded(own)
            losses = self._run.token_losses(ids, labels)
            if losses is None or not speaks:
                continue
            for i, row in enumerate(own):
                found[start + i] = losses[i, row.start - 1 : len(row.ids) - 1].double().sum()
        dist.all_reduce(found)
        return found.tolist()

    def _padded(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Inputs and labels [batch, length]; what is behind a row no token of it sees."""
        ids = torch.zeros(self._batch_size, self._length + 1, dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def perplexity(total: float, tokens: int) -> float:
    """Of tokens with this negative log-likelihood together."""
    return math.exp(min(total / tokens, 700.0))
