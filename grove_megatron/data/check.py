"""Is a pair of data files whole, and of a vocabulary? And is it what its manifest says?"""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .manifest import manifest_of, read_manifest

_BLOCK = 1 << 24
# Ids that numbers are kept of.
_MOST_IDS = 1 << 24


@dataclass(frozen=True)
class Found:
    """What is in data files.

    Args:
        documents, empty, tokens: counts.
        largest: id.
        dtype: of an id.
    """

    documents: int
    empty: int
    tokens: int
    largest: int
    dtype: str


def check(prefix: Path, vocab_size: int | None = None) -> tuple[Found, list[str]]:
    """Read all of it.

    Args:
        prefix: of ``.bin`` and ``.idx``.
        vocab_size: ids are below it; None: by the manifest's tokenizer, where there is one.

    Returns:
        what is there, and what is wrong, a line each.

    Raises:
        ValueError: a file is missing or is no index.
    """
    from megatron.core.datasets.indexed_dataset import _IndexReader

    data, index = (prefix.with_name(f"{prefix.name}.{kind}") for kind in ("bin", "idx"))
    if missing := [str(file) for file in (data, index) if not file.is_file()]:
        raise ValueError(f"--check ({prefix}) lacks {', '.join(missing)}; correct the prefix")
    try:
        read = _IndexReader(str(index), multimodal=False)
        lengths, indices = np.array(read.sequence_lengths), np.array(read.document_indices)
        pointers = np.array(read.sequence_pointers)
        dtype = np.dtype(read.dtype)
    except (AssertionError, ValueError, OSError, KeyError, struct.error) as error:
        raise ValueError(f"{index} is no index of Megatron's, or is cut short: {error}") from error
    problems = []
    needed, has = int(lengths.sum()) * dtype.itemsize, data.stat().st_size
    if needed != has:
        problems.append(f"{data} has bytes ({has}) that are not those of its index ({needed})")
    expected = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]) * dtype.itemsize
    if len(lengths) and not np.array_equal(pointers, expected[: len(pointers)]):
        problems.append(f"{index} has sequences that are not one behind the other")
    if len(indices) < 1 or indices[-1] != len(lengths) or (np.diff(indices) < 0).any():
        problems.append(f"{index} has documents that are not all of its sequences in order")
    if not lengths.sum():
        problems.append(f"{data} has no token; make it of files with text")
    elif (lengths < 0).any():
        problems.append(f"{index} has lengths below 0")
    try:
        largest, sha256 = _read(data, dtype)
    except OSError as error:
        raise ValueError(f"{data} cannot be read: {error}") from error
    try:
        said = read_manifest(prefix)
    except ValueError as error:
        said = None
        problems.append(str(error))
    if said is not None and said["bin_sha256"] != sha256:
        problems.append(
            f"{data} is not what {manifest_of(prefix)} was written beside: another SHA-256"
        )
    if vocab_size is None and said is not None:
        vocab_size = said["tokenizer"]["size"]
    if vocab_size is not None and largest >= vocab_size:
        problems.append(f"{data} has token ({largest}) that is not below ({vocab_size})")
    found = Found(
        documents=len(indices) - 1,
        empty=int((np.diff(indices) == 0).sum()),
        tokens=int(lengths.sum()),
        largest=largest,
        dtype=dtype.name,
    )
    return found, problems


def _read(data: Path, dtype: np.dtype[Any]) -> tuple[int, str]:
    """The largest id, and the SHA-256 of all bytes."""
    largest, digest = -1, hashlib.sha256()
    with data.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            ids = np.frombuffer(block[: len(block) // dtype.itemsize * dtype.itemsize], dtype)
            largest = max(largest, int(ids.max())) if len(ids) else largest
    return largest, digest.hexdigest()


def count_tokens(prefix: Path, size: int | None) -> list[int]:
    """How often every token id is there, in files that :func:`check` finds nothing wrong with.

    Args:
        size: of the vocabulary; None: to the largest id that is there.

    Raises:
        ValueError: ids are no vocabulary's.
    """
    found, _ = check(prefix, size)
    size = max(size or 0, found.largest + 1)
    if size > _MOST_IDS:
        raise ValueError(f"--check ({prefix}) has token ({found.largest}) of no vocabulary")
    counts = np.zeros(size, dtype=np.int64)
    with prefix.with_name(f"{prefix.name}.bin").open("rb") as file:
        while block := file.read(_BLOCK):
            counts += np.bincount(np.frombuffer(block, found.dtype), minlength=size)
    numbers: list[int] = counts.tolist()
    return numbers
