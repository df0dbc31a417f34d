"""Which implementation of the layer's arithmetic runs: ``--grove-kernel``."""

import logging
import os
from functools import cache
from typing import Any

from torch import Tensor

from ..config import grouped_experts_why_not
from ..kernels import TORCH, Kernels
from ..kernels.triton_support import why_not as triton_why_not

_log = logging.getLogger(__name__)


def takes_grouped_experts(config: Any) -> bool:
    """Should this model's experts be GroupedExperts, in place of Megatron's SequentialMLP?"""
    if config.grove_kernel == "megatron" or config.transformer_impl != "local":
        return False
    why_not = grouped_experts_why_not(config)
    if why_not is not None:
        log_once(f"grove_megatron: Megatron's expert modules instead of grouped ones: {why_not}")
    return why_not is None


def choose_kernels(config: Any, x: Tensor, **widths: int) -> Kernels:
    """The kernels for rows ``x`` [n, hidden_size] and matrices of these ``widths``, by name.

    Triton's on CUDA where they take the shapes, torch's otherwise; ``config.grove_kernel``
    narrows the choice. What is not taken, and why, is logged once.

    Raises:
        ValueError: --grove-kernel names kernels that cannot run.
    """
    wanted = getattr(config, "grove_kernel", "auto")
    if wanted != "triton" and not (wanted == "auto" and x.is_cuda):
        return TORCH
    why_not = triton_why_not(x.dtype, x.device, num_pairs=1, hidden_size=x.shape[-1], **widths)
    if why_not is not None and wanted == "triton":
        raise ValueError(f"--grove-kernel (triton) cannot run: {why_not}; use auto")
    # A rank without a token is no mistake of anybody's.
    why_not = why_not or (None if x.shape[0] else "no rows to work on")
    if why_not is not None:
        log_once(f"grove_megatron: torch kernels instead of Triton's: {why_not}")
        return TORCH
    from ..kernels.triton_kernels import TRITON

    return TRITON


def widths_of(experts: Any, name: str) -> dict[str, int]:
    """The width that kernels ask about, of GroupedExperts known to users as ``name``."""
    return {name: experts.linear_fc2.weight.shape[2]}


@cache
def log_once(message: str) -> None:
    """Say it on the first rank, once a process."""
    if os.environ.get("RANK", "0") == "0":
        _log.warning(message)
