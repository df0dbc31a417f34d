"""Tensors that are views of a file: read by whoever looks at them, never copied."""

import ctypes
import errno
import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

from .transforms import Shape

# Linux 5.14: read the pages of a range now, and say so if that fails.
_POPULATE_READ = 22
# Not mmap.madvise: that keeps other threads from running until the disk has answered.
_libc = ctypes.CDLL(None, use_errno=True)


class MappedFile:
    """A file in memory as far as it is looked at; its pages are the page cache's.

    Args:
        file: must not shrink while it is mapped.
    """

    def __init__(self, file: Path):
        with file.open("rb") as opened:
            # A private copy that nobody writes to: tensors want memory that could be written.
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def tensor(self, start: int, dtype: torch.dtype, shape: Shape) -> Tensor:
        """The entries at byte ``start``; the tensor keeps the map alive, and must not be written.

        Raises:
            EOFError: the file is shorter.
            OSError: it cannot be read.
        """
        count = torch.Size(shape).numel()
        end = start + count * dtype.itemsize
        if end > len(self._map):
            raise EOFError(f"the file ends at byte {len(self._map)}")
        if not count:
            return torch.empty(shape, dtype=dtype)
        self.populate(start, end - start)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start).reshape(shape)

    def window(self, start: int, length: int) -> memoryview:
        """Bytes of the file, not copied."""
        return memoryview(self._map)[start : start + length]

    def populate(self, start: int, length: int) -> None:
        """Read a range now: what the disk cannot read would end the process with SIGBUS later.

        Raises:
            OSError: it cannot be read.
        """
        first = start - start % mmap.PAGESIZE
        if _libc.madvise(
            ctypes.c_void_p(self._address + first),
            ctypes.c_size_t(start + length - first),
            _POPULATE_READ,
        ):
            number = ctypes.get_errno()
            if number != errno.EINVAL:  # an older kernel
                raise OSError(number, os.strerror(number))
