"""How long conversations are, before they are packed: counted once, by all cores, and kept."""

import hashlib
import json
import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from numpy.lib.format import read_array, write_array
from tqdm import tqdm

from .answers import Encoded, Encoder
from .conversations import ConversationFile

_LOG = logging.getLogger(__name__)
# Lines that are wrong are named, so many of them.
_SHOWN = 10
# Lines that are kept together: what a run that is ended need not count again.
BLOCK = 8192
# Lines of one task of a process, and lines from which on processes are worth their start.
_TASK = 128
_MANY = 2048
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
        left_out, altered: answers, see :class:`.answers.Encoded`.
    """

    lines: numpy.ndarray
    parts: numpy.ndarray
    lengths: numpy.ndarray
    firsts: numpy.ndarray
    answers: numpy.ndarray
    left_out: numpy.ndarray
    altered: numpy.ndarray


Rows = list[tuple[int, int, int, int, int, int, int]]


def encoded(file: ConversationFile, line: int, encode: Encoder) -> list[Encoded]:
    """Conversations of a line, counted from 0, as ids.

    Raises:
        ValueError: the line is none, or the chat template does not take it; with its place.
    """
    try:
        return [encode(conversation) for conversation in file[line]]
    except ValueError as error:
        raise ValueError(f"{file.place(line)} {error}") from error


def counted(
    file: ConversationFile, lines: numpy.ndarray, encode: Encoder, cache: str | None
) -> Counted:
    """Tokens of every conversation of some lines.

    Args:
        file: that they are of.
        lines: their numbers, ascending.
        encode: how they become ids.
        cache: folder for what was counted; None: beside the file.

    Raises:
        ValueError: lines that are no conversations, of the same blocks.
    """
    folder = Path(cache or Path(file.path).parent / "cache" / "sft")
    blocks = sorted({int(line) // BLOCK for line in lines})
    kept = {block: _kept(folder / _name(file, block, encode)) for block in blocks}
    missing = [block for block in blocks if kept[block] is None]
    wrong: list[str] = []
    for block, rows, problems in _of_blocks(file, encode, missing):
        wrong += problems
        table = numpy.array(rows, dtype=numpy.int64).reshape(-1, 7).T
        kept[block] = table
        if not problems:
            _keep(folder / _name(file, block, encode), table)
    if wrong:
        more = f"\nand {len(wrong) - _SHOWN} more lines" if len(wrong) > _SHOWN else ""
        listed = "\n".join(wrong[:_SHOWN])
        raise ValueError(
            f"--data-path ({file.path}) has {len(wrong)} lines that are no conversations; correct "
            f"them, or leave them out\n{listed}{more}"
        )
    every = numpy.concatenate([kept[block] for block in blocks], axis=1)
    return Counted(*every[:, numpy.isin(every[0], lines)])


def _of_blocks(
    file: ConversationFile, encode: Encoder, blocks: Sequence[int]
) -> Iterator[tuple[int, Rows, list[str]]]:
    """Of every block its rows and what is wrong, one after the other."""
    spans = [range(b * BLOCK, min((b + 1) * BLOCK, len(file))) for b in blocks]
    total = sum(map(len, spans))
    tasks = (
        (file.taken(range(start, min(start + _TASK, span.stop))), encode)
        for span in spans
        for start in span[::_TASK]
    )
    shown = tqdm(total=total, unit="line", delay=_PATIENCE, desc=file.path)
    with shown, _mapping(total) as mapping:
        results = mapping(_count, tasks)
        for block, span in zip(blocks, spans, strict=True):
            rows: Rows = []
            wrong: list[str] = []
            for start in span[::_TASK]:
                found, problems = next(results)
                rows += [(start + row[0], *row[1:]) for row in found]
                wrong += problems
                shown.update(min(_TASK, span.stop - start))
            yield block, rows, wrong


@contextmanager
def _mapping(lines: int) -> Iterator[Any]:
    """``map``, by all cores where that is worth their start."""
    workers = len(os.sched_getaffinity(0)) if lines >= _MANY else 1
    if workers == 1:
        yield map
        return
    # No fork: the ranks have threads.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield pool.map


def _count(task: tuple[ConversationFile, Encoder]) -> tuple[Rows, list[str]]:
    file, encode = task
    rows: Rows = []
    wrong = []
    for line in range(len(file)):
        try:
            for part, found in enumerate(encoded(file, line, encode)):
                answers = sum(found.answer)
                first = found.answer.index(True) if answers else len(found.ids)
                counts = (len(found.ids), first, answers, found.left_out, found.altered)
                rows.append((line, part, *counts))
        except ValueError as error:
            wrong.append(str(error))
    return rows, wrong


def _name(file: ConversationFile, block: int, encode: Encoder) -> str:
    """Of the file with what was counted of a block of this file by this tokenizer."""
    key = [str(Path(file.path).resolve()), *file.identity, encode.identity]
    return f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}-{block}.npy"


def _kept(place: Path) -> numpy.ndarray | None:
    try:
        with place.open("rb") as file:
            table: numpy.ndarray = read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return table if table.ndim == 2 and len(table) == 7 else None


def _keep(place: Path, counts: numpy.ndarray) -> None:
    """Write them whole, or not at all: the next run counts again."""
    temporary = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write_array(file, counts)
        temporary.replace(place)
    except OSError as error:
        _LOG.warning("counts of conversations are not kept (%s): %s", place, error.strerror)
        temporary.unlink(missing_ok=True)
