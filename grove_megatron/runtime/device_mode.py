"""Send every tensor that asks for "cuda" to the CPU.

One ``TorchFunctionMode`` sees all factory calls and tensor methods, so no module of Megatron has
to be changed for its ``device="cuda"`` literals. The mode belongs to a thread; the runtime enters
it in threads that start while it is active.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")


def names_accelerator(value: Any) -> bool:
    """Does ``value`` say "the GPU"? A bare index does: Megatron passes current_device()."""
    if isinstance(value, torch.device):
        return value.type == "cuda"
    if isinstance(value, str):
        return value == "cuda" or value.startswith("cuda:")
    return isinstance(value, int) and not isinstance(value, bool)


def _to(*args: Any, **kwargs: Any) -> torch.Tensor:
    # Tensor.to takes the device as its first argument; an int there can only be a device.
    if len(args) > 1 and names_accelerator(args[1]):
        args = (args[0], _CPU, *args[2:])
    return torch.Tensor.to(*args, **kwargs)


def _cuda(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return tensor


def _type(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    # Optimizers and gradient clipping compare type names: 'torch.cuda.FloatTensor'.
    if args and isinstance(args[0], str):
        args = (args[0].replace("torch.cuda.", "torch.", 1), *args[1:])
    if args or kwargs:
        return torch.Tensor.type(tensor, *args, **kwargs)
    return torch.Tensor.type(tensor).replace("torch.", "torch.cuda.", 1)


def _is_pinned(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> bool:
    return False


def _pin_memory(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return tensor


_REPLACED: dict[Any, Callable[..., Any]] = {
    torch.Tensor.to: _to,
    torch.Tensor.cuda: _cuda,
    torch.Tensor.type: _type,
    torch.Tensor.is_pinned: _is_pinned,
    torch.Tensor.pin_memory: _pin_memory,
}


class CudaMeansCpu(TorchFunctionMode):
    """While active, ``device="cuda"``, ``.cuda()`` and a device index all mean the CPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        func = _REPLACED.get(func, func)
        if not kwargs:  # most calls; there are thousands in an iteration
            return func(*args)
        if names_accelerator(kwargs.get("device")):
            kwargs = {**kwargs, "device": _CPU}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        return func(*args, **kwargs)
