"""Documents to Megatron's ``.bin`` and ``.idx``: in segments, each of which survives a kill.

The files are those of megatron-core's IndexedDatasetBuilder, in the order of the documents, as
Megatron-LM's tools/preprocess_data.py writes them for the same tokenizer and documents.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .documents import Document, documents, find_sources
from .manifest import FORMAT, manifest_of
from .tokenizers import Encoder

# Of a segment, in documents and characters; a kill loses less than one.
_SEGMENT = 8192
_CHARACTERS = 1 << 26
# That a worker gets at a time.
_CHUNK = 32
_SHOWN = 10
TRAIN, VALID = "train", "valid"


@dataclass(frozen=True)
class Options:
    """What to make.

    Args:
        prefix: of the files; with a split ``_train`` and ``_valid`` behind it.
        tokenizer: see :class:`.tokenizers.Encoder`.
        field: of the text.
        append_end: the tokenizer's end behind every document.
        valid: share of the documents for validation, chosen by their content; 0: no split.
        skip_bad: go on without what is no document.
        workers: processes that tokenize.
    """

    prefix: Path
    tokenizer: str
    field: str = "text"
    append_end: bool = True
    valid: float = 0.0
    skip_bad: bool = False
    workers: int = 1

    @property
    def splits(self) -> dict[str, Path]:
        """Prefix of every part."""
        if not self.valid:
            return {TRAIN: self.prefix}
        return {s: self.prefix.with_name(f"{self.prefix.name}_{s}") for s in (TRAIN, VALID)}


@dataclass
class Counts:
    """Of all parts together."""

    documents: int = 0
    empty: int = 0
    tokens: int = 0
    bad: int = 0
    places: list[str] = field(default_factory=list)


def build(inputs: Sequence[Path], options: Options) -> Counts:
    """Make the files, or go on with them.

    Raises:
        ValueError: all that is wrong; nothing has its name then, and what was tokenized stays in
            ``PREFIX.incomplete`` for the same command to go on.
    """
    sources = find_sources(inputs)
    encoder = Encoder(options.tokenizer)
    end = encoder.facts.end
    if options.append_end and end is None:
        raise ValueError(
            f"--tokenizer ({options.tokenizer}) has no token for the end of a document; add one to "
            "it, or give --no-append-end"
        )
    dtype = _dtype(encoder.facts.size)
    job = {
        "sources": [[str(s.resolve()), _size(s), _changed(s)] for s in sources],
        "tokenizer": encoder.facts.as_json(),
        "field": options.field,
        "append_end": options.append_end,
        "valid": options.valid,
    }
    folder = options.prefix.with_name(f"{options.prefix.name}.incomplete")
    try:
        with _alone(folder):
            work = _Work(folder, job)
            if not work.made:
                _check_destinations(options)
                _tokenize(sources, options, encoder, dtype, work)
                if work.counts.bad and not options.skip_bad:
                    raise ValueError(_of_bad(work.counts))
                work.made = [
                    pair
                    for split, prefix in options.splits.items()
                    for pair in _join(split, prefix, dtype, work, job, options)
                ]
            counts = work.counts
            work.publish()
    except BrokenProcessPool as error:
        raise ValueError(
            f"--workers ({options.workers}) are processes of which one was killed, maybe for want "
            "of memory; the same command goes on from here, with fewer if need be"
        ) from error
    except OSError as error:
        raise ValueError(
            f"{options.prefix} cannot be written: {error}; the same command goes on from here"
        ) from error
    return counts


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While this process makes these files, no other does; a folder with nothing in it goes."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"{folder} is being written by another command; wait for it, or name another "
                "--output"
            ) from error
        try:
            yield
        finally:
            if folder.is_dir() and os.listdir(folder) == ["lock"]:
                shutil.rmtree(folder)


def _files_of(source: Path) -> list[Path]:
    return [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]


def _size(source: Path) -> int:
    return sum(file.stat().st_size for file in _files_of(source))


def _changed(source: Path) -> int:
    """When, in nanoseconds: what was read before it is no longer in it."""
    return max(file.stat().st_mtime_ns for file in _files_of(source))


def _dtype(size: int) -> type[np.number[Any]]:
    from megatron.core.datasets.indexed_dataset import DType

    found: type[np.number[Any]] = DType.optimal_dtype(size)
    return found


def _check_destinations(options: Options) -> None:
    there = [
        str(file)
        for prefix in options.splits.values()
        for file in (*_files(prefix), manifest_of(prefix))
        if file.exists()
    ]
    if there:
        raise ValueError(
            f"--output ({options.prefix}) is there already: {', '.join(there)}; remove it, or name "
            "another"
        )


def _files(prefix: Path) -> tuple[Path, Path]:
    return prefix.with_name(f"{prefix.name}.bin"), prefix.with_name(f"{prefix.name}.idx")


def _of_bad(counts: Counts) -> str:
    more = f" and {counts.bad - _SHOWN} more" if counts.bad > _SHOWN else ""
    lines = "\n".join(counts.places)
    return (
        f"INPUT has places that are no document ({counts.bad}); correct them, or --skip-bad to go "
        f"on without{more}:\n{lines}"
    )


# ------------------------------------------------------------------------------------- tokenizing

_encoder: Encoder | None = None


def _encode(texts: list[str]) -> list[tuple[bytes, int]]:
    """Ids of every text as fixed-width bytes, and how many; in a worker."""
    assert _encoder is not None
    dtype = _dtype(_encoder.facts.size)
    found = []
    for text in texts:
        ids = _encoder(text)
        found.append((np.array(ids, dtype=dtype).tobytes(), len(ids)))
    return found


@contextmanager
def _workers(encoder: Encoder, count: int) -> Iterator[Any]:
    """A function like map over lists of texts, in order."""
    global _encoder
    # Of the tokenizers library, whose threads would be as many again.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = encoder
    try:
        if count == 1:
            yield lambda chunks: map(_encode, chunks)
            return
        # Forked, they have the tokenizer already.
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(count, mp_context=context) as pool:
            yield lambda chunks: pool.map(_encode, chunks)
    finally:
        _encoder = None


class _Work:
    """What is tokenized so far, in a folder that a kill leaves.

    Args:
        folder: of the segments.
        job: what makes it another work; that of another is removed, and this begins anew.

    Attributes:
        segments: that are whole.
        made: files that wait for their names, with those; empty before all are written.
    """

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        self.folder = folder
        self._state = folder / "state.json"
        self._job = json.loads(json.dumps(job))
        self.segments: list[dict[str, Any]] = []
        self.made: list[tuple[Path, Path]] = []
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            state = None
        if isinstance(state, dict) and state.get("job") == self._job:
            self.segments = state["segments"]
            self.made = [(Path(staged), Path(final)) for staged, final in state["made"]]
        else:
            for file in folder.iterdir():
                if file.name != "lock":
                    file.unlink()

    @property
    def seen(self) -> int:
        """Documents and what was in their place, in all segments."""
        return sum(segment["seen"] for segment in self.segments)

    @property
    def counts(self) -> Counts:
        """Of all segments."""
        found = Counts()
        for segment in self.segments:
            found.documents += segment["documents"]
            found.empty += segment["empty"]
            found.tokens += segment["tokens"]
            found.bad += segment["bad"]
            found.places += segment["places"]
        found.places = found.places[:_SHOWN]
        return found

    def data(self, number: int, split: str) -> Path:
        return self.folder / f"{number:06d}.{split}.bin"

    def lengths(self, number: int, split: str) -> Path:
        return self.folder / f"{number:06d}.{split}.len"

    def add(self, segment: dict[str, Any]) -> None:
        """A segment whose files are whole."""
        self.segments.append(segment)
        self._save()

    def publish(self) -> None:
        """Give what is made its names, all of it even if a kill comes between, and go."""
        for staged, _ in self.made:
            if staged.exists():
                _to_disk(staged)
        self._save()
        for staged, final in self.made:
            if staged.exists():
                staged.replace(final)
        shutil.rmtree(self.folder)

    def _save(self) -> None:
        made = [[str(staged), str(final)] for staged, final in self.made]
        new = self._state.with_suffix(".new")
        state = {"job": self._job, "segments": self.segments, "made": made}
        new.write_text(json.dumps(state), encoding="utf-8")
        _to_disk(new)
        new.replace(self._state)


def _to_disk(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _tokenize(
    sources: Sequence[Path],
    options: Options,
    encoder: Encoder,
    dtype: type[np.number[Any]],
    work: _Work,
) -> None:
    bar = tqdm(
        total=sum(map(_size, sources)),
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )
    everything = (one for source in sources for one in documents(source, options.field))
    for one in islice(everything, work.seen):
        bar.update(one.size)
    end = np.array([encoder.facts.end], dtype=dtype).tobytes() if options.append_end else b""
    with bar, _workers(encoder, options.workers) as encode:
        while batch := _batch(everything):
            _segment(batch, encode, end, options, work)
            bar.update(sum(one.size for one in batch))


def _batch(everything: Iterator[Document]) -> list[Document]:
    """The documents of a segment."""
    found, characters = [], 0
    for one in islice(everything, _SEGMENT):
        found.append(one)
        characters += len(one.text or "")
        if characters >= _CHARACTERS:
            break
    return found


def _segment(batch: list[Document], encode: Any, end: bytes, options: Options, work: _Work) -> None:
    number = len(work.segments)
    good = [one for one in batch if one.text is not None]
    bad = [one for one in batch if one.text is None]
    texts = [one.text or "" for one in good]
    chunks = [texts[i : i + _CHUNK] for i in range(0, len(texts), _CHUNK)]
    lengths = {split: array("q") for split in options.splits}
    files = {split: work.data(number, split).open("wb") for split in options.splits}
    try:
        rows = zip(texts, (row for chunk in encode(chunks) for row in chunk), strict=True)
        for text, (ids, count) in rows:
            split = _split_of(text, options.valid)
            files[split].write(ids)
            if count and end:
                files[split].write(end)
            lengths[split].append(count + bool(count and end))
        for split, file in files.items():
            file.flush()
            os.fsync(file.fileno())
            work.lengths(number, split).write_bytes(lengths[split].tobytes())
            _to_disk(work.lengths(number, split))
    finally:
        for file in files.values():
            file.close()
    every = [n for of_split in lengths.values() for n in of_split]
    work.add(
        {
            "seen": len(batch),
            "documents": len(every),
            "empty": every.count(0),
            "tokens": sum(every),
            "bad": len(bad),
            "places": [f"{one.place} {one.wrong}" for one in bad[:_SHOWN]],
        }
    )


def _split_of(text: str, valid: float) -> str:
    """By its content alone: the same document is never in both parts."""
    if not valid:
        return TRAIN
    digest = hashlib.sha256(text.encode()).digest()
    return VALID if int.from_bytes(digest[:8], "big") < valid * 2**64 else TRAIN


# ------------------------------------------------------------------------------------- publishing


def _join(
    split: str,
    prefix: Path,
    dtype: type[np.number[Any]],
    work: _Work,
    job: dict[str, Any],
    options: Options,
) -> list[tuple[Path, Path]]:
    """A part's files, whole, under other names; and the names that they are to have.

    Raises:
        ValueError: a segment is not what was written, or the part has no token.
    """
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    data, index = (work.folder / f"{split}.{kind}" for kind in ("bin", "idx"))
    builder = IndexedDatasetBuilder(str(data), dtype=dtype)
    digest, documents_, empty = hashlib.sha256(), 0, 0
    for number in range(len(work.segments)):
        with work.data(number, split).open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
                builder.data_file.write(block)
        lengths = array("q")
        lengths.frombytes(work.lengths(number, split).read_bytes())
        needed, has = sum(lengths) * np.dtype(dtype).itemsize, work.data(number, split).stat()
        if has.st_size != needed:
            raise ValueError(
                f"{work.data(number, split)} has bytes ({has.st_size}) that are not those that "
                f"were written ({needed}); remove {work.folder}"
            )
        for length in lengths:
            # A document without a token has no sequence.
            if length:
                builder.sequence_lengths.append(length)
            builder.document_indices.append(len(builder.sequence_lengths))
            documents_, empty = documents_ + 1, empty + (not length)
    if not builder.sequence_lengths:
        wrong = f"INPUT ({', '.join(name for name, *_ in job['sources'][:3])}) has no token"
        if options.valid and work.counts.tokens:
            wrong = f"--valid ({options.valid}) leaves no token for {prefix}"
        raise ValueError(f"{wrong}, of documents ({work.counts.documents}); name more text")
    builder.finalize(str(index))
    manifest = {
        "format": FORMAT,
        "version": 1,
        "tokenizer": job["tokenizer"],
        "dtype": np.dtype(dtype).name,
        "append_end": options.append_end,
        "field": options.field,
        "split": None if not options.valid else {"part": split, "valid": options.valid},
        "documents": documents_,
        "empty": empty,
        "tokens": int(sum(builder.sequence_lengths)),
        "bin_sha256": digest.hexdigest(),
        "skipped": work.counts.bad,
        "sources": [[Path(name).name, size] for name, size, _ in job["sources"]],
    }
    said = work.folder / f"{split}.json"
    said.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    final_data, final_index = _files(prefix)
    return [(data, final_data), (index, final_index), (said, manifest_of(prefix))]
