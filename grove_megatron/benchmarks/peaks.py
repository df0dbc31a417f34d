"""The speed of this machine at large matrix products, measured: what others are compared with."""

import statistics

import torch

from . import ranks
from .harness import cuda_clock, wall_clock


def matmul_flops_per_second(dtype: torch.dtype) -> float:
    """The speed of one large square matrix product here, operations a second."""
    on_cuda = ranks.cuda_is_used()
    size = 8192 if on_cuda else 1024
    a, b = torch.randn(2, size, size, device=torch.cuda.current_device()).to(dtype)
    clock = cuda_clock if on_cuda else wall_clock
    seconds = [clock(lambda: a @ b) for _ in range(12)][2:]
    return 2 * size**3 / statistics.median(seconds)
