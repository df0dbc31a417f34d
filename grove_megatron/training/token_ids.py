"""Token ids are looked at before a model sees them.

An id that the vocabulary does not have belongs to another tokenizer. Megatron answers it with an
IndexError without a name or, where the embedding is split over tensor-parallel ranks, with a row
of zeros and a loss without that token: the run goes on and learns something else.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..checks.flags import flag_of
from ..checks.problem import Problem, shown
from ..checks.rules import Check
from .vocabulary import vocabulary_size as vocabulary_size

_NO_ROW = ", so that tokens have no row in the embedding; raise it, or leave it out"
_SOURCES = (
    *("data_path", "train_data_path", "valid_data_path", "test_data_path"),
    *("data_args_path", "per_split_data_args_path", "mock_data"),
)


def vocabulary_problems(args: Namespace) -> Iterator[Problem]:
    """Vocabularies that contradict each other, as far as the flags tell."""
    check = Check(args)
    size, padded = args.vocab_size, args.padded_vocab_size
    yield from check.at_least("vocab_size", 1, "give the number of tokens")
    if padded is not None and padded < (size or 1):
        yield check.problem("{padded_vocab_size} is below {vocab_size}" + _NO_ROW)
    if args.tokenizer_model is not None and args.tokenizer_type is None:
        yield check.problem(
            "{tokenizer_model} is not read without {tokenizer_type}, which is GPT2BPETokenizer "
            "then; give the type, as HuggingFaceTokenizer"
        )
    end = args.null_tokenizer_eod_id
    # Every document of the mock data ends with it.
    ends = args.tokenizer_type == "NullTokenizer" and args.mock_data and end is not None
    if ends and size and not 0 <= end < size:
        sentence = (
            f"{{null_tokenizer_eod_id}} is not a token of {{vocab_size}}; use 0 to {size - 1}"
        )
        yield check.problem(sentence)


def known_vocabulary(args: Namespace) -> int | None:
    """Tokens that data may hold as far as the flags alone tell; None before a tokenizer is read."""
    if args.tokenizer_type == "NullTokenizer" and args.vocab_size:
        return int(args.vocab_size)
    return args.padded_vocab_size and int(args.padded_vocab_size)


def tokenizer_problem(args: Namespace, tokenizer: Any) -> Problem | None:
    """Why the model has no row for some token of ``tokenizer``, or None.

    Args:
        args: Megatron's, validated, with what the tokenizer has made of the padded vocabulary.
        tokenizer: Megatron's.
    """
    return rows_problem(args, vocabulary_size(tokenizer))


def rows_problem(args: Namespace, size: int) -> Problem | None:
    """The same of a tokenizer whose ids are below ``size``."""
    rows = args.padded_vocab_size or args.vocab_size
    if rows is None or size <= rows:
        return None
    flag = "{padded_vocab_size}" if args.padded_vocab_size else "{vocab_size}"
    sentence = f"{flag} is below the vocabulary ({size}) of {{tokenizer}}{_NO_ROW}"
    return Check(args).problem(sentence, tokenizer=_tokenizer(args))


def check_tokens(batch: Mapping[str, Tensor | None], vocabulary: int, args: Namespace) -> None:
    """Look at a batch as the data loader gives it, on the CPU: no GPU waits for it.

    Args:
        batch: with ``tokens`` and ``labels``, and ``loss_mask``: what it leaves out needs no label.
            Integers of any shape; what is not there is not looked at.
        vocabulary: ids are 0 and more, and below it.
        args: Megatron's, for the message.

    Raises:
        ValueError: an id that is not in the vocabulary.
    """
    for name in ("tokens", "labels"):
        ids = batch.get(name)
        if ids is None or ids.numel() == 0:
            continue
        lowest, highest = (int(x) for x in torch.aminmax(ids))
        if lowest >= 0 and highest < vocabulary:
            continue
        outside = (ids < 0) | (ids >= vocabulary)
        mask = batch.get("loss_mask")
        if name == "labels" and mask is not None and mask.shape == ids.shape:
            outside &= mask != 0
        if outside.any():
            token = int(ids[outside][0])
            raise ValueError(str(outside_of_the_vocabulary(token, vocabulary, args)))


def outside_of_the_vocabulary(
    token: int, vocabulary: int, args: Namespace, where: str | None = None
) -> Problem:
    """The problem: which id, of which vocabulary, from which data.

    Args:
        where: the data; None: what the flags name.
    """
    return Problem(
        "token id",
        token,
        f"in the data of {where or _data(args)} is not in the vocabulary of {_tokenizer(args)}, 0 "
        f"to {vocabulary - 1}; use the tokenizer that made the data, or make them again",
    )


def _data(args: Namespace) -> str:
    given = {name: value for name in _SOURCES if (value := getattr(args, name, None))}
    sources = (f"{flag_of(name)} ({_short(value)})" for name, value in given.items())
    return ", ".join(sources) or "the data loader"


def _short(value: Any) -> str:
    """The first of what may be a blend of hundreds."""
    if not isinstance(value, list) or len(value) <= 4:
        return shown(value)
    return f"{shown(value[:4])} and {len(value) - 4} more"


def _tokenizer(args: Namespace) -> str:
    model = args.tokenizer_model or args.vocab_file
    detail = f", {model}" if model else f", --vocab-size {args.vocab_size}"
    return f"--tokenizer-type ({args.tokenizer_type or 'GPT2BPETokenizer'}{detail})"


class CheckedLoader:
    """A data loader whose batches have been looked at, for scripts that read it themselves.

    Args:
        loader: torch's.
        vocabulary, args: see :func:`check_tokens`.
    """

    def __init__(self, loader: Any, vocabulary: int, args: Namespace) -> None:
        self._loader, self._vocabulary, self._args = loader, vocabulary, args

    def __iter__(self) -> Iterator[Any]:
        # At once, as without us: it draws a seed and starts the workers.
        return self._checked(iter(self._loader))

    def _checked(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            if isinstance(batch, Mapping):
                check_tokens(batch, self._vocabulary, self._args)
            yield batch

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
