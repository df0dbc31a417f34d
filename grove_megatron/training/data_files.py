"""Are the files of tokens there that the flags name, whole, and of this vocabulary?

Megatron finds out after the model is built, with the first of them, and not always by name.
"""

import json
import math
import os
import struct
from argparse import Namespace
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy
from megatron.core.datasets.indexed_dataset import DType
from megatron.core.datasets.object_storage_utils import is_object_storage_path

from ..checks.flags import flag_of
from ..checks.problem import UNSAID, Problem
from ..data.manifest import read_manifest
from ..data.tokenizers import fingerprint
from .token_ids import known_vocabulary, outside_of_the_vocabulary

# A blend may be of thousands.
_SHOWN = 10
# Of every file, to find a tokenizer that is another; all batches are looked at later.
_TOKENS_READ = 1 << 14
_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_SUFFIXES = (".bin", ".idx")
_SPLITS = ("train", "valid", "test")


def data_file_problems(args: Namespace) -> list[Problem]:
    """What is wrong with the data that ``--data-path`` and its relatives name.

    Args:
        args: Megatron's namespace, parsed.
    """
    if args.mock_data or args.dataloader_type == "external" or getattr(args, "sft", False):
        return []  # no such files, or a script's own
    found = chain(
        *(_blend_problems(args, flag, words) for flag, words in _blends(args)),
        _file_problems(args),
        _tokenizer_problems(args),
    )
    problems = [*islice(found, _SHOWN)]
    if rest := sum(1 for _ in found):
        text = f"{rest} more problems of the data files; correct these first"
        problems.append(Problem.of_text(text))
    return problems


def _tokenizer_problems(args: Namespace) -> Iterator[Problem]:
    """Data that says beside it that it was made with another tokenizer than the job's.

    Megatron's NullTokenizer stands for any; what is outside of its vocabulary is found anyway.
    """
    model = args.tokenizer_model
    if args.tokenizer_type == "NullTokenizer" or model is None or not os.path.exists(model):
        return
    own = fingerprint(model)
    for prefix in dict.fromkeys(prefixes(args)):
        try:
            said = read_manifest(Path(prefix))
        except ValueError as error:
            yield Problem.of_text(str(error))
            continue
        if said is not None and said["tokenizer"]["fingerprint"] != own:
            made = f"{said['tokenizer']['model']}, a {said['tokenizer']['kind']}"
            yield Problem(
                "--tokenizer-model",
                model,
                f"has other files than the tokenizer that ({prefix}) was made with ({made}); name "
                "that one, or make the data anew",
            )


def prefixes(args: Namespace) -> list[str]:
    """Of all data files that the flags name, as far as they can be read."""
    return [prefix for _, words in _blends(args) for prefix in _prefixes(words)]


def validation_prefixes(args: Namespace) -> list[str]:
    """Of those that are for validation alone."""
    ends = ("--valid-data-path", ": valid")
    return [p for flag, words in _blends(args) if flag.endswith(ends) for p in _prefixes(words)]


def _prefixes(words: list[str]) -> list[str]:
    blend = _split_blend(words)
    return [] if blend is None else blend[0]


def _blends(args: Namespace) -> Iterator[tuple[str, list[str]]]:
    """Flags, and the weights and prefixes they stand for."""
    for name in ("data_path", *(f"{split}_data_path" for split in _SPLITS)):
        if words := getattr(args, name, None):
            yield flag_of(name), words
    if args.data_args_path and isinstance(text := _read(args.data_args_path), str):
        yield f"--data-args-path ({args.data_args_path}):", text.split()
    if isinstance(splits := _read_json(args.per_split_data_args_path), dict):
        for split in _SPLITS:
            words = splits.get(split)
            words = words.split() if isinstance(words, str) else words
            if isinstance(words, list) and words:
                yield f"--per-split-data-args-path: {split}", [str(word) for word in words]


def _file_problems(args: Namespace) -> Iterator[Problem]:
    """Of the files that name data files, not of those."""
    for name in ("data_args_path", "per_split_data_args_path", "per_dataset_sequences_path"):
        path = getattr(args, name, None)
        if not path or is_object_storage_path(path):
            continue
        content = _read(path) if name == "data_args_path" else _read_json(path)
        text = ""
        if isinstance(content, Exception):
            text = f"cannot be read: {_reason(content)}; correct it"
        elif name == "data_args_path" and not content.split():
            text = "is empty; write weights and prefixes into it"
        elif name == "per_split_data_args_path" and (
            not isinstance(content, dict)
            or not all(isinstance(content.get(split), str | list | None) for split in _SPLITS)
            or not content.keys() >= {*_SPLITS}
        ):
            text = f"has no lists of prefixes for {', '.join(_SPLITS)}; give all three"
        elif name == "per_dataset_sequences_path":
            missing = [p for p in prefixes(args) if p not in content]
            if missing:
                text = f"does not name ({missing[0]}), which the data flags do; add it"
        if text:
            yield Problem(flag_of(name), path, text)


def _blend_problems(args: Namespace, flag: str, words: list[str]) -> Iterator[Problem]:
    blend = _split_blend(words)
    if blend is None:
        yield Problem(
            flag,
            words if len(words) <= 6 else [*words[:6], "..."],
            "mixes prefixes with and without a weight; give a weight before every prefix, or none",
        )
        return
    found, weights = blend
    for weight in weights:
        if not (weight > 0 and math.isfinite(weight)):
            text = f"has a weight ({weight}) that is not above 0; leave that prefix out"
            yield Problem(flag, UNSAID, text)
    for prefix in found:
        if not is_object_storage_path(prefix):
            yield from _prefix_problems(args, flag, prefix)


def _split_blend(words: list[str]) -> tuple[list[str], list[float]] | None:
    """Prefixes and weights as Megatron tells them apart, by every other word; None if it cannot."""
    words = [word.strip() for word in words]
    given = [_number(word) for word in words[::2]]
    weights = [weight for weight in given if weight is not None]
    if len(words) % 2 or not weights:
        return words, []
    return (words[1::2], weights) if len(weights) == len(given) else None


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _prefix_problems(args: Namespace, flag: str, prefix: str) -> Iterator[Problem]:
    missing = [suffix for suffix in _SUFFIXES if not os.path.isfile(prefix + suffix)]
    if missing:
        there = " and ".join(f"{prefix}{suffix}" for suffix in missing)
        yield Problem(flag, prefix, f"has no {there}; {_hint(prefix)}")
        return
    try:
        if wrong := _why_no_index(prefix):
            yield Problem(flag, prefix, f": {wrong}")
        elif problem := _tokens_problem(args, f"{flag} ({prefix})", prefix):
            yield problem
    except (OSError, ValueError, struct.error) as error:
        yield Problem(flag, prefix, f"cannot be read: {_reason(error)}; correct it")


def _hint(prefix: str) -> str:
    stem, suffix = prefix[:-4], prefix[-4:]
    if suffix in _SUFFIXES and os.path.isfile(prefix):
        return f"give {stem}, without the suffix"
    if os.path.isfile(prefix):
        return "make them of it with grove data; --sft reads a file of conversations"
    if _number(prefix) is not None:
        return "give a weight before every prefix, or none"
    return "give the path of both without their suffix"


def _why_no_index(prefix: str) -> str | None:
    """Is the index whole, and are there as many bytes of tokens as it says?"""
    index, tokens = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    made = "make it again with grove data"
    with index.open("rb") as file:
        header = file.read(_HEADER.size)
        magic = header[: len(_MAGIC)]
        if magic != _MAGIC:
            return f"{index} is not an index of Megatron's; {made}"
        if len(header) < _HEADER.size:
            return f"{index} ({len(header)} bytes) is cut off; {made}"
        _, version, code, sequences, documents = _HEADER.unpack(header)
        if version != 1 or code not in (kind.value for kind in DType):
            return (
                f"{index} has version ({version}) and type ({code}), not known to Megatron; {made}"
            )
        needed = _HEADER.size + 12 * sequences + 8 * documents
        if (size := index.stat().st_size) < needed:
            return f"{index} ({size} bytes) is cut off, it needs ({needed}); {made}"
        if not sequences:
            return f"{index} has no sequence; {made}"
        file.seek(_HEADER.size + 4 * (sequences - 1))
        (length,) = struct.unpack("<i", file.read(4))
        file.seek(_HEADER.size + 4 * sequences + 8 * (sequences - 1))
        (start,) = struct.unpack("<q", file.read(8))
    needed = start + length * DType.size(code)
    if (size := tokens.stat().st_size) < needed:
        return f"{tokens} ({size} bytes) is cut off, its index needs ({needed}); {made}"
    return None


def _tokens_problem(args: Namespace, where: str, prefix: str) -> Problem | None:
    """Do the first tokens belong to the vocabulary, as far as the flags tell it?"""
    vocabulary = known_vocabulary(args)
    if vocabulary is None:
        return None
    with Path(f"{prefix}.idx").open("rb") as file:
        kind = DType.dtype_from_code(_HEADER.unpack(file.read(_HEADER.size))[2])
    ids = numpy.fromfile(f"{prefix}.bin", dtype=kind, count=_TOKENS_READ)
    if not ids.size or ids.max() < vocabulary:
        return None
    token = int(ids[ids >= vocabulary][0])
    return outside_of_the_vocabulary(token, vocabulary, args, where)


def _read(path: str) -> str | Exception:
    try:
        return Path(path).read_text()
    except (OSError, ValueError) as error:
        return error


def _read_json(path: str | None) -> Any:
    text = _read(path) if path else None
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError as error:
        return error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())
