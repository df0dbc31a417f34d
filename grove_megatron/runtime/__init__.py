"""Run real Megatron where CUDA, or a part of the wheel, is missing.

Importing this package changes nothing and imports neither torch nor Megatron.
``python -m grove_megatron.runtime`` prints the inventory of patches.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cpu() -> Iterator[None]:
    """``with grove_megatron.runtime.cpu():`` runs Megatron on the CPU; see :mod:`.cpu_runtime`."""
    from .cpu_runtime import cpu as enter

    with enter():
        yield


@contextmanager
def selected() -> Iterator[None]:
    """The runtime for this machine: CUDA if there is one, else the CPU; rank 0 says which.

    ``GROVE_RUNTIME=cpu`` forces the CPU. On CUDA only the ``wheel`` patches are applied.
    """
    import torch

    from .wheel import WHEEL

    forced = os.environ.get("GROVE_RUNTIME", "")
    if forced not in ("", "cpu", "cuda"):
        raise ValueError(f"GROVE_RUNTIME ({forced}) is not one of (cpu, cuda); unset it")
    has_cuda = torch.cuda.is_available()
    if forced == "cuda" and not has_cuda:
        raise ValueError(
            "GROVE_RUNTIME (cuda) needs a CUDA device, torch.cuda.is_available() (False); "
            "unset it to run on the CPU"
        )
    use_cpu = forced == "cpu" or not has_cuda
    if os.environ.get("RANK", "0") == "0":
        why = "GROVE_RUNTIME=cpu" if forced == "cpu" else "no CUDA device found"
        line = (
            f"CPU with gloo ({why})" if use_cpu else f"CUDA, {torch.cuda.device_count()} device(s)"
        )
        print(f"grove_megatron: runtime {line}", file=sys.stderr, flush=True)
    with cpu() if use_cpu else WHEEL.applied():
        yield


def cpu_is_active() -> bool:
    """Is the CPU runtime active in this process?"""
    module = sys.modules.get(f"{__name__}.cpu_runtime")
    return module is not None and module.CPU.active
