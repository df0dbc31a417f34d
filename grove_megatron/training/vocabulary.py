"""How many tokens a job has, as far as that can be known on this machine.

The embedding has a row for every token. Megatron takes their number from the tokenizer, whatever
``--vocab-size`` says beside it (build_tokenizer.py:140 @ 0.19.2); only tokenizers without a file of
their own take the flag.
"""

import copy
import json
from argparse import Namespace
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_BY_FLAG = ("NullTokenizer", "NullMultimodalTokenizer")
_TIKTOKEN_DEFAULT = 2**17
_GPT2_TOKENS = 50257


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a job.

    Attributes:
        tokens: their number, before it is padded; None where it cannot be known here.
        source: where it is from, or why it is not known.
        ids: one more than the highest of its ids, where the tokenizer itself is known: a model
            needs as many rows. None where only the flags tell, or a model beside it.
    """

    tokens: int | None
    source: str
    ids: int | None = None

    def __str__(self) -> str:
        return self.source if self.tokens is None else f"{self.tokens:,} tokens ({self.source})"


def read_vocabulary(args: Namespace) -> Vocabulary:
    """The vocabulary of a job; nothing is fetched, and no code of the tokenizer's folder is run.

    Args:
        args: Megatron's namespace, before or after its validation.
    """
    kind = args.tokenizer_type or "GPT2BPETokenizer"
    if kind in _BY_FLAG or not args.pad_vocab_size:
        return _given(args, "")
    if kind == "TikTokenizer":
        source = "Megatron's default for TikTokenizer"
        default = Vocabulary(_TIKTOKEN_DEFAULT, source, ids=_TIKTOKEN_DEFAULT)
        return _given(args, "") if args.vocab_size else default
    if kind == "GPT2BPETokenizer":
        return _of_gpt2(args)
    return _of_model(args, kind)


def _given(args: Namespace, otherwise: str) -> Vocabulary:
    """By the flag, which stands in where the tokenizer itself is not ``otherwise`` known."""
    if args.vocab_size is None:
        return Vocabulary(None, otherwise or "--vocab-size (None)")
    if not otherwise:
        return Vocabulary(args.vocab_size, "--vocab-size")
    return Vocabulary(args.vocab_size, f"--vocab-size; the job asks its tokenizer, {otherwise}")


def _of_gpt2(args: Namespace) -> Vocabulary:
    """Of ``--vocab-file``; without it Megatron fetches that of GPT-2."""
    file = args.vocab_file
    if file is None:
        return Vocabulary(_GPT2_TOKENS, "GPT-2's, Megatron's default", ids=_GPT2_TOKENS)
    try:
        tokens = len(json.loads(Path(file).read_text(encoding="utf-8")))
        return Vocabulary(tokens, str(file), ids=tokens)
    except (OSError, ValueError) as error:
        return _given(args, _unread("--vocab-file", file, error))


def _of_model(args: Namespace, kind: str) -> Vocabulary:
    """Of the files of ``--tokenizer-model``, read as the job would read them."""
    model = args.tokenizer_model
    if model is None:
        return _given(args, f"--tokenizer-type ({kind}) without --tokenizer-model")
    place = _place(str(model))
    if place is None:
        return _given(args, f"--tokenizer-model ({model}), which is not on this machine")
    of_tokenizer = copy.copy(args)
    of_tokenizer.tokenizer_model = str(place)
    of_tokenizer.trust_remote_code = of_tokenizer.pad_vocab_size = False
    try:
        # Not everywhere that a job is planned.
        from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer

        built = build_tokenizer(of_tokenizer)
        return Vocabulary(int(built.vocab_size), str(model), ids=vocabulary_size(built))
    except Exception as error:
        # Whatever a library says of a file that is not what it should be.
        unread = _unread("--tokenizer-model", model, error)
        return _of_config(place) or _given(args, unread)


def _place(model: str) -> Path | None:
    """A tokenizer's file or folder; of a name on Hugging Face, what is kept of it here."""
    try:
        if Path(model).exists():
            return Path(model)
        from huggingface_hub import try_to_load_from_cache

        for name in ("tokenizer.json", "tokenizer_config.json"):
            if isinstance(kept := try_to_load_from_cache(model, name), str):
                return Path(kept).parent
    except (ImportError, OSError, ValueError):
        # Not installed, or no name that a disk or Hugging Face could have.
        pass
    return None


def _of_config(place: Path) -> Vocabulary | None:
    """Of a model beside its tokenizer: what its makers padded it to, so nearly the number."""
    file = place / "config.json"
    try:
        tokens = json.loads(file.read_text(encoding="utf-8"))["vocab_size"]
        return Vocabulary(int(tokens), f"{file}; the tokenizer beside it cannot be read here")
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _unread(flag: str, value: object, error: Exception) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{flag} ({value}), which cannot be read here: {said[:160]}"


@lru_cache(maxsize=2)
def vocabulary_size(tokenizer: Any) -> int:
    """One more than the highest id of a Megatron tokenizer.

    Those of Hugging Face may leave numbers out, so that their count is less.
    """
    inner: Any = getattr(getattr(tokenizer, "_tokenizer", None), "tokenizer", None)
    named = inner.get_vocab() if hasattr(inner, "get_vocab") else {}
    return max(int(tokenizer.vocab_size), max(named.values(), default=-1) + 1)
