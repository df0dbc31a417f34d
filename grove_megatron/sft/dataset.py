"""Conversations packed into sequences, as Megatron's data loaders take them.

In place of ``megatron.training.datasets.sft_dataset`` of megatron-core 0.19, with samples of the
same fields. That one packs only what stands in one line of the file, cuts what is too long without
a word, takes an end-of-text token that is also the padding out of the loss, and needs the datasets
library to read JSON lines.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split
from megatron.training.utils import print_rank_0
from numpy.lib.format import read_array, write_array
from torch import Tensor
from tqdm import tqdm

from .answers import Encoded, Encoder, encoder_of
from .conversations import ConversationFile
from .packing import packs

_LOG = logging.getLogger(__name__)
# Lines that are wrong are named, so many of them.
_SHOWN = 10
# Seconds after which counting shows how far it is.
_PATIENCE = 3


@dataclass(frozen=True)
class Counted:
    """Of the C conversations of some lines, [C] int64 each: where it is, and how long.

    Args:
        lines, parts: the line, and which conversation of it.
        lengths: in tokens.
        firsts: the first token of an answer.
        answers: tokens of answers.
    """

    lines: numpy.ndarray
    parts: numpy.ndarray
    lengths: numpy.ndarray
    firsts: numpy.ndarray
    answers: numpy.ndarray


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
        # Context-parallel ranks halve every conversation into as many chunks.
        self._unit = 2 * config.context_parallel_size if config.context_parallel_size > 1 else 1
        self._encode: Encoder = encoder_of(config.tokenizer)
        counted = _counted(dataset, indices, self._encode, config)
        padded = -(-counted.lengths // self._unit) * self._unit
        trained = counted.firsts < numpy.minimum(counted.lengths, self._capacity)
        self._counted, self._kept = counted, numpy.flatnonzero(trained)
        self._packs = packs(padded[self._kept].tolist(), self._capacity)
        if not self._packs:
            raise ValueError(
                f"--data-path ({dataset_path}) has no answer for {index_split.name} within "
                f"--seq-length ({self._capacity}) of its {len(indices)} lines; raise it, or change "
                "--split"
            )
        self._say(padded)

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
        return self._sample([self._encoded(int(self._kept[i])) for i in pack])

    def _order(self, epoch: int) -> numpy.ndarray:
        """Of an epoch's sequences; another in each, the same in every run of a seed."""
        if self._ordered is None or self._ordered[0] != epoch:
            random = numpy.random.default_rng([self.config.random_seed, epoch])
            self._ordered = epoch, random.permutation(len(self._packs))
        return self._ordered[1]

    _ordered: tuple[int, numpy.ndarray] | None = None

    def _encoded(self, number: int) -> Encoded:
        counted = self._counted
        line, part = int(counted.lines[number]), int(counted.parts[number])
        return encoded(self.dataset, line, self._encode)[part]

    def _sample(self, pack: list[Encoded]) -> dict[str, Tensor]:
        size, pad = self._capacity, self._pad
        tokens: list[int] = []
        labels: list[int] = []
        trained: list[bool] = []
        positions: list[int] = []
        starts = [0]
        for one in pack:
            ids, answer = one.ids[:size], one.answer
            # Each token's label is the next one; the last has none in its conversation.
            length = -(-len(ids) // self._unit) * self._unit
            extra = [pad] * (length - len(ids))
            following, is_answer = one.ids[1 : size + 1], answer[1 : size + 1]
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

    def _say(self, padded: numpy.ndarray) -> None:
        """What becomes of the conversations, and what does not."""
        counted, kept, size = self._counted, self._kept, self._capacity
        lengths = numpy.minimum(padded[kept], size)
        cut = int((counted.lengths[kept] > size).sum())
        left_out = len(counted.lengths) - len(kept)
        said = (
            f"sft {self.index_split.name}: {len(kept)} conversations of {self.dataset_path}, "
            f"{int(lengths.sum())} tokens, {int(counted.answers[kept].sum())} of them in answers, "
            f"in {len(self._packs)} sequences of {size}, "
            f"{lengths.sum() / (size * len(self._packs)):.1%} full"
        )
        if cut or left_out:
            said += (
                f"; WARNING: {cut} cut at --seq-length ({size}), {left_out} left out, without an "
                "answer within it"
            )
        print_rank_0(said)


def _ids(tokenizer: Any) -> Iterator[int | None]:
    """Of padding and of the end of text, as far as a tokenizer has them."""
    for name in ("pad", "eod"):
        try:
            yield getattr(tokenizer, name)
        except (AttributeError, NotImplementedError, TypeError, KeyError):
            yield None


def encoded(file: ConversationFile, line: int, encode: Encoder) -> list[Encoded]:
    """Conversations of a line, counted from 0, as ids.

    Raises:
        ValueError: the line is none, or the chat template does not take it; with its place.
    """
    try:
        return [encode(conversation) for conversation in file[line]]
    except ValueError as error:
        raise ValueError(f"{file.place(line)} {error}") from error


def _counted(
    file: ConversationFile, lines: numpy.ndarray, encode: Encoder, config: GPTDatasetConfig
) -> Counted:
    """Tokens of every conversation; from the cache where the same have been counted."""
    kept = _cache(file, lines, encode, config)
    try:
        with kept.open("rb") as file_of_counts:
            return Counted(*read_array(file_of_counts, allow_pickle=False))
    except (OSError, ValueError, EOFError, TypeError):
        counted = _count(file, lines, encode)
    _keep(kept, numpy.stack([*vars(counted).values()]))
    return counted


def _count(file: ConversationFile, lines: numpy.ndarray, encode: Encoder) -> Counted:
    rows, wrong = [], []
    for line in tqdm(lines.tolist(), unit="line", delay=_PATIENCE, desc=file.path):
        try:
            for part, found in enumerate(encoded(file, line, encode)):
                answers = sum(found.answer)
                first = found.answer.index(True) if answers else len(found.ids)
                rows.append((line, part, len(found.ids), first, answers))
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        more = f"\nand {len(wrong) - _SHOWN} more lines" if len(wrong) > _SHOWN else ""
        listed = "\n".join(wrong[:_SHOWN])
        raise ValueError(
            f"--data-path ({file.path}) has {len(wrong)} lines that are no conversations; correct "
            f"them, or leave them out\n{listed}{more}"
        )
    return Counted(*numpy.array(rows, dtype=numpy.int64).reshape(-1, 5).T)


def _cache(
    file: ConversationFile, lines: numpy.ndarray, encode: Encoder, config: GPTDatasetConfig
) -> Path:
    """Where the counts of these lines by this tokenizer are kept."""
    path = Path(file.path)
    about = path.stat()
    span = [int(n) for n in (lines[:1].sum(), lines.size)]
    key = [str(path.resolve()), about.st_size, about.st_mtime_ns, *span, encode.identity]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    folder = Path(config.path_to_cache or path.parent / "cache" / "sft")
    return folder / f"{name}-conversations.npy"


def _keep(place: Path, counts: numpy.ndarray) -> None:
    """Write them whole, or not at all: the next run counts again."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent)
        with os.fdopen(handle, "wb") as file:
            write_array(file, counts)
        Path(name).replace(place)
    except OSError as error:
        _LOG.warning("counts of conversations are not kept (%s): %s", place, error.strerror)
