"""Run real Megatron where CUDA, or a part of the wheel, is missing.

Importing this package changes nothing and imports neither torch nor Megatron.
``python -m grove_megatron.runtime`` prints the inventory of patches.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cpu() -> Iterator[None]:
    """``with grove_megatron.runtime.cpu(): ...`` runs Megatron on the CPU; see :mod:`.cpu`."""
    from .cpu import cpu as enter

    with enter():
        yield
