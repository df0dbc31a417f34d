"""A file that reaches the disk while it is written."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

# The kernel alone starts late, and the final fsync would then wait for gigabytes.
_SYNC_BYTES = 64 * 2**20
_BUFFER_BYTES = 4 * 2**20


class DurableFile:
    """A new file, written front to back; on the disk when the block has ended without an error.

    Args:
        path: must not exist.
    """

    def __init__(self, path: Path):
        # torch.save comes with small pieces.
        self._file = path.open("xb", buffering=_BUFFER_BYTES)
        self._unsynced = self._written = 0
        self._worker = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def write(self, data: bytes | bytearray | memoryview) -> int:
        count = self._file.write(data)
        self._written += count
        self._unsynced += count
        if self._unsynced >= _SYNC_BYTES and (self._pending is None or self._pending.done()):
            self._check()
            self._file.flush()
            self._pending = self._worker.submit(os.fdatasync, self._file.fileno())
            self._unsynced = 0
        return count

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        """Nothing: what counts is the end of the block. ``torch.save`` calls it."""

    def _check(self) -> None:
        """Raise what the disk has said so far."""
        if self._pending is not None:
            self._pending.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._check()
                sync(self._file)
        finally:
            self._worker.shutdown()
            self._file.close()


def sync(opened: BinaryIO) -> None:
    """Have everything written to a file on the disk."""
    opened.flush()
    os.fsync(opened.fileno())
