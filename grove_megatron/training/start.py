"""How every command of this package begins: check the installation, then choose the runtime."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..compat import environment_problems
from ..runtime import runtime_problems, selected
from .refuse import refuse


@contextmanager
def started() -> Iterator[None]:
    """Refuse an installation or machine that cannot work, else run the block under the runtime."""
    # Asking about CUDA imports torch, which environment_problems may find missing.
    if problems := environment_problems() or runtime_problems():
        refuse(problems)
    with selected():
        yield
