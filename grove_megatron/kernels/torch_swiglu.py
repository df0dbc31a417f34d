"""SwiGLU times a weight per row, and its gradient; see :class:`.interface.Kernels`."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK_NUMEL = 1 << 17
"""Elements worked on at a time on a CPU: the temporaries then stay in its second-level cache."""


def _chunks(n: int, width: int, device: torch.device) -> Iterator[slice]:
    step = max(1, _CHUNK_NUMEL // max(width, 1)) if device.type == "cpu" else max(n, 1)
    return (slice(i, i + step) for i in range(0, n, step))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def weighted_swiglu(h: Tensor, weight: Tensor) -> Tensor:
    n, width = h.shape
    out = h.new_empty((n, width // 2))
    for rows in _chunks(n, width, h.device):
        gate, up = _wide(h[rows]).chunk(2, -1)
        torch.mul(F.silu(gate).mul_(up), weight[rows, None], out=out[rows])
    return out


def weighted_swiglu_grad(grad: Tensor, h: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    n, width = h.shape
    dh, dweight = torch.empty_like(h), torch.empty_like(weight)
    for rows in _chunks(n, width, h.device):
        gate, up = _wide(h[rows]).chunk(2, -1)
        g = _wide(grad[rows])
        dgate, dup = dh[rows].chunk(2, -1)
        dsilu_up = g * F.silu(gate)
        dweight[rows] = torch.linalg.vecdot(dsilu_up, up)
        torch.mul(dsilu_up, weight[rows, None], out=dup)
        dsilu = (g * up).mul_(weight[rows, None])
        if dgate.dtype == dsilu.dtype:
            torch.ops.aten.silu_backward.grad_input(dsilu, gate, grad_input=dgate)
        else:
            # On CUDA an output in 16 bits would round what goes in as well.
            dgate.copy_(torch.ops.aten.silu_backward(dsilu, gate))
    return dh, dweight
