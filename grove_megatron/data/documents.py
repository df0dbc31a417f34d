"""Documents out of files: JSON lines, plain text, parquet, and folders of the datasets library."""

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_READ = (*_LINES, ".txt", ".parquet")
# A line that is longer is no document, but a file without line ends.
_LONGEST = 1 << 28


@dataclass(frozen=True)
class Document:
    """One of a source, or what is in its place.

    Args:
        place: ``file:line`` or ``file``, to find it again.
        text: of it; None where ``wrong`` says what is there.
        size: bytes of the file that it takes.
        wrong: why it is none.
    """

    place: str
    text: str | None
    size: int
    wrong: str = ""


def find_sources(inputs: Sequence[Path]) -> list[Path]:
    """The files of the inputs, those of a folder in the order of their names.

    Raises:
        ValueError: all that is not there, is of no known kind or is empty.
    """
    found: list[Path] = []
    problems = []
    for place in inputs:
        files = [place]
        if (place / "dataset_dict.json").is_file():
            parts = ", ".join(sorted(p.name for p in place.iterdir() if p.is_dir()))
            problems.append(f"INPUT ({place}) is of several splits ({parts}); name one of them")
            continue
        if place.is_dir() and not _is_dataset(place):
            files = _below(place)
            if not files:
                problems.append(f"INPUT ({place}) has no file of {', '.join(_READ)}; correct it")
        for file in files:
            if not file.exists():
                problems.append(f"INPUT ({file}) is not there; correct the path")
            elif file.is_file() and not _is_read(file):
                problems.append(f"INPUT ({file}) is none of {', '.join(_READ)}; convert it first")
            elif file.is_file() and not file.stat().st_size:
                problems.append(f"INPUT ({file}) is empty; leave it out")
            elif any(file.samefile(other) for other in found):
                problems.append(f"INPUT ({file}) is there twice; leave one out")
            else:
                found.append(file)
    problems += [line for file in found if (line := _missing_package(file))]
    if problems:
        raise ValueError("\n".join(problems))
    return found


def _below(folder: Path) -> list[Path]:
    """Files and datasets in it, however deep, in the order of their names."""
    datasets = {p.parent for p in folder.rglob("state.json") if _is_dataset(p.parent)}
    files = {p for p in folder.rglob("*") if p.is_file() and _is_read(p)}
    return sorted(datasets | {p for p in files if datasets.isdisjoint(p.parents)})


def _is_read(file: Path) -> bool:
    return file.name.endswith(_READ)


def _is_dataset(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()


def _missing_package(file: Path) -> str | None:
    from importlib.util import find_spec

    package = ""
    if file.is_dir():
        package = "datasets"
    elif file.name.endswith(".zst"):
        package = "zstandard"
    elif file.name.endswith(".parquet"):
        package = "pyarrow"
    if not package or find_spec(package) is not None:
        return None
    return f"INPUT ({file}) needs {package} (not installed); pip install 'grove-megatron[data]'"


def documents(source: Path, field: str) -> Iterator[Document]:
    """All of one source, in order.

    Args:
        source: of :func:`find_sources`.
        field: that has the text, where there are several.

    Raises:
        ValueError: it cannot be read to its end.
    """
    try:
        yield from _documents(source, field)
    except Exception as error:  # of any library
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"INPUT ({source}) cannot be read: {said}; replace it") from error


def _documents(source: Path, field: str) -> Iterator[Document]:
    if source.is_dir():
        yield from _of_rows(source, field, _dataset_rows(source))
    elif source.name.endswith(".parquet"):
        yield from _of_rows(source, field, _parquet_rows(source))
    elif source.name.endswith(".txt"):
        yield _whole(source)
    else:
        yield from _of_lines(source, field)


def _whole(file: Path) -> Document:
    size = file.stat().st_size
    try:
        # As bytes: its line ends are its own.
        return Document(str(file), file.read_bytes().decode(), size)
    except UnicodeDecodeError as error:
        return Document(str(file), None, size, f"is not UTF-8 at byte {error.start}")


def _of_lines(file: Path, field: str) -> Iterator[Document]:
    with file.open("rb") as raw, _opened(file, raw) as lines:
        before = number = 0
        while line := lines.readline(_LONGEST):
            number += 1
            ended = line.endswith(b"\n") or len(line) < _LONGEST
            while not ended:
                rest = lines.readline(_LONGEST)
                ended = rest.endswith(b"\n") or len(rest) < _LONGEST
                line = b""
            now = raw.tell()
            size, before = now - before, now
            place = f"{file}:{number}"
            if not line:
                yield Document(place, None, size, f"is not below {_LONGEST >> 20} MiB long")
            elif line.strip():
                yield _of_line(place, line, size, field)


def _opened(file: Path, raw: IO[bytes]) -> Any:
    if file.name.endswith(".gz"):
        return gzip.open(raw)
    if file.name.endswith(".zst"):
        return io.BufferedReader(_Zst(raw))
    return raw


class _Zst(io.RawIOBase):
    """What is in a zstd file, whose frames may be several: to its end, or an error."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._blocks, self._block = _zst_blocks(raw), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._block:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._block = memoryview(block)
        count = min(len(buffer), len(self._block))
        buffer[:count], self._block = self._block[:count], self._block[count:]
        return count


def _zst_blocks(raw: IO[bytes]) -> Iterator[bytes]:
    import zstandard

    frame = None
    while packed := raw.read(1 << 17):
        while packed:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(packed)
            packed = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("its last frame is cut short")


def _of_line(place: str, line: bytes, size: int, field: str) -> Document:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Document(place, None, size, f"is not JSON: {error}")
    if not isinstance(row, dict):
        return Document(place, None, size, f"is no JSON object but a {type(row).__name__}")
    return _of_row(place, row, size, field)


def _of_row(place: str, row: dict[str, Any], size: int, field: str) -> Document:
    if field not in row:
        there = ", ".join(map(str, row)) or "none"
        return Document(place, None, size, f"has no field {field}, of ({there})")
    text = row[field]
    if not isinstance(text, str):
        return Document(place, None, size, f"has {field} that is no text but {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wrong = f"has {field} with half of a surrogate pair at character {error.start}"
        return Document(place, None, size, wrong)
    return Document(place, text, size)


def _of_rows(source: Path, field: str, rows: Iterator[dict[str, Any]]) -> Iterator[Document]:
    for number, row in enumerate(rows, 1):
        one = _of_row(f"{source}:{number}", row, 0, field)
        yield Document(one.place, one.text, len(one.text or ""), one.wrong)


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile

    for batch in ParquetFile(file).iter_batches(batch_size=1024):
        yield from batch.to_pylist()


def _dataset_rows(folder: Path) -> Iterator[dict[str, Any]]:
    from datasets import load_from_disk

    yield from load_from_disk(str(folder))
