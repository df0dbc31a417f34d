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
def selected(*, say: bool = True) -> Iterator[None]:
    """The runtime for this machine: CUDA if there is one, else the CPU; rank 0 says which.

    ``GROVE_RUNTIME=cpu`` forces the CPU. On CUDA only the ``wheel`` patches are applied.

    Args:
        say: False: rank 0 says nothing.

    Raises:
        ValueError: see :func:`runtime_problems`.
    """
    import torch

    from .wheel import WHEEL

    if problems := runtime_problems():
        raise ValueError("; ".join(problems))
    forced = os.environ.get("GROVE_RUNTIME", "")
    use_cpu = forced == "cpu" or not torch.cuda.is_available()
    if say and os.environ.get("RANK", "0") == "0":
        why = "GROVE_RUNTIME=cpu" if forced == "cpu" else "no CUDA device found"
        line = (
            f"CPU with gloo ({why})" if use_cpu else f"CUDA, {torch.cuda.device_count()} device(s)"
        )
        print(f"grove_megatron: runtime {line}", file=sys.stderr, flush=True)
    with cpu() if use_cpu else WHEEL.applied():
        yield


def runtime_problems() -> list[str]:
    """Why no runtime can be chosen on this machine, one line each."""
    import torch

    forced = os.environ.get("GROVE_RUNTIME", "")
    if forced not in ("", "cpu", "cuda"):
        return [f"GROVE_RUNTIME ({forced}) is not one of (cpu, cuda); unset it"]
    if forced == "cpu":
        return []
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if forced == "cuda" and not devices:
        return [f"GROVE_RUNTIME (cuda) needs a CUDA device, found ({devices}); unset it"]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 0 < devices < processes:
        return [
            f"processes on this node ({processes}) are more than CUDA devices ({devices}); lower "
            "--nproc-per-node, or set GROVE_RUNTIME=cpu"
        ]
    return []


def cuda_is_here() -> bool:
    """Does this process run on CUDA? The CPU runtime has torch say so where there is none."""
    import torch

    return not cpu_is_active() and torch.cuda.is_available()


def cpu_is_active() -> bool:
    """Is the CPU runtime active in this process?"""
    module = sys.modules.get(f"{__name__}.cpu_runtime")
    return module is not None and module.CPU.active
