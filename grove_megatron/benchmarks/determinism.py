"""Torch's deterministic algorithms, for a block."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron.training.determinism import apply_determinism_env


def prepare_determinism() -> None:
    """Set the libraries' variables as Megatron's ``--deterministic-mode`` does.

    They are read when a library starts, so this comes before the first process group and the first
    product, and holds for everything that is measured after it.

    Raises:
        AssertionError: one of them is set already, to something that is not deterministic.
    """
    apply_determinism_env(os.environ)


@contextmanager
def deterministic() -> Iterator[None]:
    """``torch.use_deterministic_algorithms(True)``, which that mode runs with."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
