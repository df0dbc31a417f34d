"""Whether the Triton kernels can run. Does not import triton, which may be missing."""

import importlib.util
import os
from functools import cache

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_MULTIPLE = 8
_CAPABILITY = (8, 0)


def why_not(
    dtype: torch.dtype, device: torch.device, *, num_pairs: int, **widths: int
) -> str | None:
    """One sentence that says why the kernels cannot do this, or None if they can.

    Args:
        dtype: of the rows and the weights.
        device: of both.
        num_pairs: rows to work on. The kernels are safe without any; there is only nothing to run.
        widths: sizes of the rows and matrices under the names their user knows them by, such as
            ``ffn_hidden_size=12``. A row must be made of whole 16-byte pieces.
    """
    if dtype not in DTYPES:
        return f"dtype ({_name(dtype)}) is not one of {', '.join(map(_name, DTYPES))}"
    for name, width in widths.items():
        if width % _MULTIPLE:
            return f"{name} ({width}) is not a multiple of {_MULTIPLE}"
    if not num_pairs:
        return "num_pairs (0) leaves nothing to compute"
    return _why_not_here(device)


def _why_not_here(device: torch.device) -> str | None:
    if not _triton_is_installed():
        return "triton is not installed"
    if interpreting():
        return None
    if device.type != "cuda" or not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        found, needed = (".".join(map(str, pair)) for pair in (capability, _CAPABILITY))
        return f"CUDA compute capability ({found}) is below {needed}"
    return None


def interpreting() -> bool:
    """Whether Triton runs kernels as Python on the CPU, as tests do.

    Triton reads the variable when a kernel is defined: set it before the kernels are imported.
    """
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
