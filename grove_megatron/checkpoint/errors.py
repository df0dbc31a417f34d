"""How far numbers are from a reference in fp64: what both kinds of ``grove verify`` measure by."""

import torch
from torch import Tensor

LOSS_TOLERANCE = 1e-6
"""Relative, of a loss."""
# Of the largest gradient: below it, those of a reference in fp64 are rounding errors.
_ZERO = 1e-12


def size_of(grad: Tensor, overall: float) -> float:
    """What an error of a gradient is measured by: its largest entry.

    A gradient that is zero has no size of its own, and one that is zero but for rounding (of the
    router between equal experts) has none that means anything; ``overall``, the largest entry of
    all gradients, stands in.
    """
    largest = float(grad.abs().max())
    return largest if largest > _ZERO * overall else overall or 1.0


def worst_of(error: Tensor) -> float:
    """The largest entry; what is no number is infinite."""
    return float(torch.nan_to_num(error, nan=float("inf"), posinf=float("inf")).max())
