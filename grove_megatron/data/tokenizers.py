"""Tokenizers as Megatron has them, so that the tokens are those that it would make."""

import hashlib
import json
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BYTES = "bytes"
# What a tokenizer of Hugging Face's format is made of.
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")


@dataclass(frozen=True)
class TokenizerFacts:
    """What the manifest of data says of its tokenizer.

    Args:
        kind: ``--tokenizer-type`` of a training on it.
        model: name of its file or folder.
        fingerprint: SHA-256 of its files.
        size: ids that it has, from 0.
        end: id of the end of a document, or None.
    """

    kind: str
    model: str
    fingerprint: str
    size: int
    end: int | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def kind_of(place: str) -> str:
    """``--tokenizer-type`` for a path, or for ``bytes``.

    Raises:
        ValueError: nothing is there, or it is none.
    """
    if place == BYTES:
        return "NullTokenizer"
    path = Path(place)
    if path.is_dir():
        if any((path / name).is_file() for name in _FILES):
            return "HuggingFaceTokenizer"
        raise ValueError(f"--tokenizer ({place}) has no files of a tokenizer; correct the path")
    if not path.is_file():
        raise ValueError(f"--tokenizer ({place}) is no folder, no file and not bytes; correct it")
    return "SentencePieceTokenizer" if path.suffix == ".model" else "TikTokenizer"


def fingerprint(place: str) -> str:
    """SHA-256 of what makes a tokenizer: the files, with the names that they have in a folder.

    JSON is taken as what it says, without how a batch is padded and cut, which transformers
    writes into it when it saves.
    """
    if place == BYTES:
        return BYTES
    path, digest = Path(place), hashlib.sha256()
    files = [path / name for name in _FILES] if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            content, name = _content(file), file.name if path.is_dir() else ""
            digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _content(file: Path) -> bytes:
    content = file.read_bytes()
    if file.name != "tokenizer.json":
        return content
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        return content
    if isinstance(said, dict):
        said = {name: said[name] for name in said if name not in ("padding", "truncation")}
    return json.dumps(said, sort_keys=True).encode()


class Encoder:
    """Text to ids.

    Args:
        place: of the tokenizer: a folder of Hugging Face's format, a file of SentencePiece or
            tiktoken, or ``bytes``.

    Raises:
        ValueError: it is not there, or Megatron does not load it.
    """

    def __init__(self, place: str) -> None:
        kind = kind_of(place)
        self._own: Any = None
        size: int = 257
        end: int | None = 256
        if place != BYTES:
            self._own = _built(kind, place)
            size, end = self._own.vocab_size, _end_of(self._own)
        self.facts = TokenizerFacts(kind, Path(place).name, fingerprint(place), size, end)

    def __call__(self, text: str) -> list[int]:
        if self._own is None:
            return list(text.encode())
        ids: list[int] = self._own.tokenize(text)
        return ids


def _built(kind: str, place: str) -> Any:
    from argparse import ArgumentParser

    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
    from megatron.training.arguments import _add_tokenizer_args

    words = ["--tokenizer-type", kind, "--tokenizer-model", place]
    args: Namespace = _add_tokenizer_args(ArgumentParser()).parse_args(words)
    args.rank, args.make_vocab_size_divisible_by, args.tensor_model_parallel_size = 1, 128, 1
    try:
        return build_tokenizer(args)
    except Exception as error:  # of any library
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"--tokenizer ({place}) is not loaded as {kind}: {first}") from error


def _end_of(tokenizer: Any) -> int | None:
    try:
        end = tokenizer.eod
    except (AttributeError, NotImplementedError, TypeError, KeyError):
        return None
    return None if end is None or end < 0 else int(end)
