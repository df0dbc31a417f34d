"""Text as token ids and back, by the tokenizer beside a model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

# One of them makes a folder a tokenizer.
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")


def has_tokenizer(folder: Path) -> bool:
    """Has a folder the files of one?"""
    return any((folder / name).is_file() for name in _FILES)


class Tokenizer:
    """A tokenizer of Hugging Face's format; nothing is fetched, and no code of the folder runs.

    Args:
        folder: with its files.

    Attributes:
        size: ids that it has, from 0.
        ends: ids after which a text is over: its own, and those of a generation_config.json.

    Raises:
        ValueError: transformers is not installed, or does not load it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise ValueError(
                f"--tokenizer ({folder}) needs transformers (not installed); pip install "
                "'grove-megatron[hf]', or give --prompt-ids"
            ) from error
        try:
            self._own: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # of any library
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"--tokenizer ({folder}) is not loaded by transformers: {first}; name another, or "
                "give --prompt-ids"
            ) from error
        # Ids may have gaps.
        self.size = max(self._own.get_vocab().values(), default=-1) + 1
        ends = [self._own.eos_token_id, *_generation_ends(folder)]
        self.ends = list(dict.fromkeys(end for end in ends if end is not None))

    def encode(self, text: str) -> list[int]:
        """Ids, with those that the tokenizer puts around a text.

        Raises:
            ValueError: the tokenizer does not take it.
        """
        try:
            ids: list[int] = self._own(text).input_ids
        except Exception as error:  # of any library
            raise ValueError(
                f"text {text[:40]!r} is not taken by the tokenizer: {error}"
            ) from error
        return ids

    def encode_chat(self, text: str) -> list[int]:
        """Ids of a user's turn, and of the words that begin the answer.

        Raises:
            ValueError: the tokenizer has no chat template, or it fails.
        """
        if not self._own.chat_template:
            raise ValueError(
                "--chat (True) needs a chat template, which the tokenizer has not; give prompts "
                "as the model knows them, without --chat"
            )
        turns = [{"role": "user", "content": text}]
        try:
            ids: list[int] = self._own.apply_chat_template(
                turns, add_generation_prompt=True, return_dict=False
            )
        except Exception as error:  # of a template
            raise ValueError(
                f"--chat (True) needs a chat template that works, and the tokenizer's does not: "
                f"{error}; correct it"
            ) from error
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text, without special tokens."""
        text: str = self._own.decode(ids, skip_special_tokens=True)
        return text


def _generation_ends(folder: Path) -> list[int]:
    """``eos_token_id`` of generation_config.json, one or several."""
    try:
        said = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    found = said.get("eos_token_id") if isinstance(said, dict) else None
    return [end for end in (found if isinstance(found, list) else [found]) if type(end) is int]


class Stream:
    """Text as it grows: what a new token adds, once its characters are whole.

    Args:
        decode: ids to text.
        write: takes what was added.
    """

    def __init__(self, decode: Callable[[list[int]], str], write: Callable[[str], None]) -> None:
        self._decode, self._write = decode, write
        self._ids: list[int] = []
        self._written = 0

    def add(self, token: int) -> None:
        """The next."""
        self._ids.append(token)
        text = self._decode(self._ids)
        # The beginning of a character of several tokens.
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._write(text[self._written :])
            self._written = len(text)

    def close(self) -> None:
        """What is left, whole or not."""
        self._write(self._decode(self._ids)[self._written :])
