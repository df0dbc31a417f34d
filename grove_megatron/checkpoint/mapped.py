"""Tensors that are views of a file: read by whoever looks at them, never copied."""

import errno
import mmap
from pathlib import Path

import torch
from torch import Tensor

from .transforms import Shape

# Linux 5.14: read the pages of a range now, and say so if that fails.
_POPULATE_READ = 22


class MappedFile:
    """A file in memory as far as it is looked at; its pages are the page cache's.

    Args:
        file: must not shrink while it is mapped.
    """

    def __init__(self, file: Path):
        with file.open("rb") as opened:
            # A private copy that nobody writes to: tensors want memory that could be written.
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)

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
        first = start - start % mmap.PAGESIZE
        try:
            # Without this, what the disk cannot read would end the process with SIGBUS.
            self._map.madvise(_POPULATE_READ, first, end - first)
        except OSError as error:
            if error.errno != errno.EINVAL:  # an older kernel
                raise
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start).reshape(shape)

    def window(self, start: int, length: int) -> memoryview:
        """Bytes of the file, not copied."""
        return memoryview(self._map)[start : start + length]
