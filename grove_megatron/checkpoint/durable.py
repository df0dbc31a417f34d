"""A file that reaches the disk while it is written."""

import errno
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

# What the disk gets at once, many of its blocks, in two places: one is filled, one written.
_CHUNK = 16 * 2**20
# Without direct writes the kernel alone starts late, and a final fsync would wait for gigabytes.
_SYNC_BYTES = 64 * 2**20


class DurableFile:
    """A new file, written front to back; on the disk when the block has ended without an error.

    Writes go past the page cache where the file system allows it: they take a third of the time,
    and what others have cached stays.

    Args:
        path: must not exist.
    """

    def __init__(self, path: Path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o666)
        self._direct = self._set_direct(True)
        self._worker = ThreadPoolExecutor(1)
        # Anonymous maps begin at a page, as direct writes want it.
        self._buffers = [memoryview(mmap.mmap(-1, _CHUNK)) for _ in range(2)]
        self._pending: list[Future[None] | None] = [None, None]
        self._now = self._filled = self._submitted = self._unsynced = 0

    def _set_direct(self, on: bool) -> bool:
        """Whether the file is in that state now."""
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL) & ~os.O_DIRECT
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | (os.O_DIRECT if on else 0))
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system without
                raise
            return False
        return on

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Add bytes at the end; returns how many.

        Raises:
            OSError: of this or of an earlier write.
        """
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            count = min(len(view) - at, _CHUNK - self._filled)
            self._buffers[self._now][self._filled : self._filled + count] = view[at : at + count]
            self._filled += count
            at += count
            if self._filled == _CHUNK:
                self._submit()
        return len(view)

    def tell(self) -> int:
        return self._submitted + self._filled

    def flush(self) -> None:
        """Nothing: what counts is the end of the block. ``torch.save`` calls it."""

    def _submit(self) -> None:
        """Have the worker write the buffer that is full; go on in the other one."""
        future = self._worker.submit(self._write, self._now, self._filled, self._submitted)
        self._pending[self._now] = future
        self._submitted += self._filled
        self._now, self._filled = 1 - self._now, 0
        self._wait(self._now)

    def _wait(self, buffer: int) -> None:
        """Raise what the disk has said of this buffer."""
        if (future := self._pending[buffer]) is not None:
            future.result()

    def _write(self, buffer: int, count: int, offset: int) -> None:
        """In the worker: bytes of a buffer to their place in the file."""
        at = 0
        while at < count:
            try:
                at += os.pwrite(self._file, self._buffers[buffer][at:count], offset + at)
            except OSError as error:
                if not (self._direct and error.errno == errno.EINVAL):
                    raise
                # No whole blocks: the end of the file, or a disk with larger ones.
                self._direct = self._set_direct(False)
        self._unsynced += count
        if not self._direct and self._unsynced >= _SYNC_BYTES:
            os.fdatasync(self._file)
            self._unsynced = 0

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
                self._submit()
                for buffer in (0, 1):
                    self._wait(buffer)
                os.fsync(self._file)
        finally:
            self._worker.shutdown()
            os.close(self._file)


def sync(opened: BinaryIO) -> None:
    """Have everything written to a file on the disk."""
    opened.flush()
    os.fsync(opened.fileno())
