"""Conversations packed into sequences, as Megatron's data loaders take them.

In place of ``megatron.training.datasets.sft_dataset`` of megatron-core 0.19, with samples of the
same fields. That one packs only what stands in one line of the file, cuts what is too long without
a word, takes an end-of-text token that is also the padding out of the loss, and needs the datasets
library to read JSON lines.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy
import torch
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split
from megatron.training.utils import print_rank_0
from torch import Tensor

from .answers import Encoded, Encoder, encoder_of
from .conversations import ConversationFile
from .counting import counted, encoded
from .packing import packs


class PackedConversations(MegatronDataset):  # type: ignore[misc]
    """Sequences of conversations, each apart from the others.

    A sample has ``tokens``, ``labels``, ``position_ids`` [S] int64, ``loss_mask`` [S] fp32,
    ``cu_seqlens`` [S + 1] int32, where conversations begin, filled up with S, and ``max_seqlen``
    int32. Positions begin anew with each conversation. What is left of a sequence is one more of
    padding, without loss.

    Raises:
        ValueError: lines that are no conversations, a tokenizer without a chat template, or nothing
            to train on.
    """

    def __init__(
        self,
        dataset: ConversationFile,
        dataset_path: str | None,
        indices: numpy.ndarray,
        num_samples: int | None,
        index_split: Split,
        config: GPTDatasetConfig,
    ) -> None:
        super().__init__(dataset, dataset_path, indices, num_samples, index_split, config)
        self._capacity = config.sequence_length
        self._ordered: tuple[int, numpy.ndarray] | None = None
        # Context-parallel ranks halve every conversation into as many chunks.
        self._unit = 2 * config.context_parallel_size if config.context_parallel_size > 1 else 1
        self._encode: Encoder = encoder_of(config.tokenizer)
        if not num_samples and num_samples is not None:
            # A part that nobody reads may have no line.
            self._packs: list[list[int]] = []
            return
        if not len(indices):
            raise ValueError(
                f"--split ({config.split}) gives {index_split.name} none of the lines of "
                f"--data-path ({dataset_path}); change it"
            )
        self._counted = counted(dataset, indices, self._encode, config.path_to_cache)
        lengths = self._counted.lengths
        padded = -(-lengths // self._unit) * self._unit
        trained = self._counted.firsts < numpy.minimum(lengths, self._capacity)
        self._kept = numpy.flatnonzero(trained)
        self._room = numpy.minimum(padded, self._capacity)[self._kept]
        self._packs = packs(self._room.tolist(), self._capacity)
        if not self._packs:
            where = f"--data-path ({dataset_path}) has no answer for {index_split.name}"
            if not self._counted.answers.any():
                raise ValueError(
                    f"{where} in its {len(indices)} lines; give conversations with messages of "
                    "assistant, behind messages that ask for them"
                )
            raise ValueError(f"{where} within --seq-length ({self._capacity}); raise it")
        self._say(len(indices))

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: GPTDatasetConfig) -> ConversationFile:
        return ConversationFile(dataset_path)

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: ConversationFile) -> int:
        return len(low_level_dataset)

    def __len__(self) -> int:
        return len(self._packs) if self.num_samples is None else self.num_samples

    def __getitem__(self, idx: int) -> dict[str, Tensor]:
        epoch, place = divmod(idx, len(self._packs))
        pack = self._packs[int(self._order(epoch)[place])]
        return self._sample([(self._encoded(int(self._kept[i])), int(self._room[i])) for i in pack])

    def _order(self, epoch: int) -> numpy.ndarray:
        """Of an epoch's sequences; another in each, the same in every run of a seed."""
        if self._ordered is None or self._ordered[0] != epoch:
            random = numpy.random.default_rng([self.config.random_seed, epoch])
            self._ordered = epoch, random.permutation(len(self._packs))
        return self._ordered[1]

    def _encoded(self, number: int) -> Encoded:
        counted = self._counted
        line, part = int(counted.lines[number]), int(counted.parts[number])
        return encoded(self.dataset, line, self._encode)[part]

    def _sample(self, pack: list[tuple[Encoded, int]]) -> dict[str, Tensor]:
        """Of conversations, each with the tokens that it was given when they were packed.

        It may have become longer or shorter: some templates say today's date.
        """
        size, pad = self._capacity, self._pad
        tokens: list[int] = []
        labels: list[int] = []
        trained: list[bool] = []
        positions: list[int] = []
        starts = [0]
        for one, length in pack:
            ids, answer = one.ids[:length], one.answer
            # Each token's label is the next one; the last has none in its conversation.
            extra = [pad] * (length - len(ids))
            following, is_answer = one.ids[1 : length + 1], answer[1 : length + 1]
            missing = length - len(following)
            tokens += ids + extra
            labels += following + [pad] * missing
            trained += is_answer + [False] * missing
            positions += range(length)
            starts.append(len(tokens))
        rest = size - len(tokens)
        if rest:
            starts.append(size)
        begins = torch.full((size + 1,), size, dtype=torch.int32)
        begins[: len(starts)] = torch.tensor(starts, dtype=torch.int32)
        return {
            "tokens": torch.tensor(tokens + [pad] * rest),
            "labels": torch.tensor(labels + [pad] * rest),
            "loss_mask": torch.tensor(trained + [False] * rest, dtype=torch.float32),
            "position_ids": torch.tensor([*positions, *range(rest)]),
            "cu_seqlens": begins,
            "max_seqlen": begins.diff().max(),
        }

    @cached_property
    def _pad(self) -> int:
        """Any token: it is in no loss, and no conversation sees it."""
        tokenizer = self.config.tokenizer
        return next(int(one) for one in (*_ids(tokenizer), 0) if one is not None and one >= 0)

    def _say(self, lines: int) -> None:
        """What becomes of the conversations, and what does not."""
        counted, kept, size = self._counted, self._kept, self._capacity
        tokens, room = int(self._room.sum()), size * len(self._packs)
        said = (
            f"sft {self.index_split.name}: {len(kept)} conversations of {self.dataset_path}, "
            f"{tokens} tokens, {int(counted.answers[kept].sum())} of them in answers, "
            f"in {len(self._packs)} sequences of {size}, {tokens / room:.1%} full"
        )
        losses = {
            f"conversations cut at --seq-length ({size})": (counted.lengths[kept] > size).sum(),
            f"conversations left out, without an answer within --seq-length ({size})": (
                len(counted.lengths) - len(kept)
            ),
            "lines left out, without an answer": lines - len(numpy.unique(counted.lines)),
            "answers not trained, for which nothing asks, or which the chat template shows "
            "otherwise when more follows": counted.left_out[kept].sum(),
            "answers of which the chat template takes words out": counted.altered[kept].sum(),
        }
        if found := [f"{int(count)} {what}" for what, count in losses.items() if count]:
            said += f"; WARNING: {'; '.join(found)}"
        print_rank_0(said)


def _ids(tokenizer: Any) -> Iterator[int | None]:
    """Of padding and of the end of text, as far as a tokenizer has them."""
    for name in ("pad", "eod"):
        try:
            yield getattr(tokenizer, name)
        except (AttributeError, NotImplementedError, TypeError, KeyError):
            yield None
