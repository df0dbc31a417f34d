"""The CPU runtime: real megatron.training without CUDA, under gloo.

Three means, all undone on exit: the ``cpu`` patches below, a ``TorchFunctionMode`` that reads
"cuda" as the CPU, and eager execution of what Megatron decorated with ``torch.compile``.
"""

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

import torch

from . import cuda_stand_in as stand_in
from .cuda_names import NEEDS_A_GPU, STAND_INS
from .device_mode import CudaMeansCpu, names_accelerator
from .fingerprints import megatron_patch, torch_patch
from .gpu_packages import without_gpu_packages
from .registry import Patch, PatchSet
from .wheel import WHEEL


def _always(replacement: Any) -> Callable[[Any], Any]:
    return lambda original: replacement


def _cuda_rng_get(original: Any) -> Any:
    def _get_cuda_rng_state(
        device: Any = "cuda", clone: bool = False, graph_safe: bool = False
    ) -> torch.Tensor:
        return torch.get_rng_state()

    return _get_cuda_rng_state


def _cuda_rng_set(original: Any) -> Any:
    def _set_cuda_rng_state(
        new_state: torch.Tensor, device: Any = -1, graph_safe: bool = False
    ) -> None:
        torch.set_rng_state(new_state)

    return _set_cuda_rng_state


def _move_splits(original: Any) -> Any:
    def maybe_move_tensor_to_cpu(
        tensor: Any, as_numpy: bool = False, record_stream: bool = False
    ) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    return maybe_move_tensor_to_cpu


def _is_there_at_all(tensor: torch.Tensor | None) -> None:
    assert tensor is not None


def _thread_bootstrap(original: Callable[[threading.Thread], None]) -> Any:
    def _bootstrap_inner(self: threading.Thread) -> None:
        with CudaMeansCpu():
            original(self)

    return _bootstrap_inner


def _loader_iterator(original: Callable[..., None]) -> Any:
    def __init__(self: Any, loader: Any) -> None:
        state = torch.get_rng_state()
        original(self, loader)
        torch.set_rng_state(state)

    return __init__


def _run_backward(original: Callable[..., Any]) -> Any:
    def _engine_run_backward(t_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        with CudaMeansCpu():
            return original(t_outputs, *args, **kwargs)

    return _engine_run_backward


# Where torch keeps the same objects under the same names.
_HOMES = (
    torch.cuda.memory,
    torch.cuda.random,
    torch.cuda.streams,
    torch.cuda.graphs,
    torch.cuda.profiler,
)


def _torch_cuda(
    path: str, reason: str, make: Callable[[Any], Any], *, refuses: bool = False
) -> Patch:
    """A patch of ``path`` below torch.cuda, everywhere torch keeps the object."""
    module, _, name = path.rpartition(".")
    original = getattr(torch.cuda, path, None)
    return torch_patch(
        name=f"cuda-{path.replace('.', '-').replace('_', '-')}",
        target=f"torch.cuda{'.' if module else ''}{module}:{name}",
        also=tuple(f"{home.__name__}:{name}" for home in _HOMES if _has(home, name, original)),
        reason=reason,
        make=make,
        refuses=refuses,
    )


def _has(home: Any, name: str, original: Any) -> bool:
    return original is not None and vars(home).get(name) is original


def _stand_in(path: str) -> Patch:
    replacement, reason = STAND_INS[path]
    return _torch_cuda(path, reason, _always(_own(replacement)))


def _own(replacement: Any) -> Any:
    """A function of its own for every name: torch's compiler keeps its rules by object."""
    if not isinstance(replacement, FunctionType):
        return replacement
    return FunctionType(
        replacement.__code__,
        replacement.__globals__,
        replacement.__name__,
        replacement.__defaults__,
    )


def _is_there(path: str) -> bool:
    module, _, name = path.rpartition(".")
    return hasattr(getattr(torch.cuda, module) if module else torch.cuda, name)


def _refusal(path: str) -> Patch:
    reason = "asks for what only a GPU has"
    make = stand_in.refusing("CUDA" if path == "_lazy_init" else f"torch.cuda.{path}")
    return _torch_cuda(path, reason, make, refuses=True)


def _device_context(original: Any) -> Any:
    def __init__(self: Any, device: Any) -> None:
        original(self, "cpu" if names_accelerator(device) else device)

    return __init__


CPU = PatchSet(
    "cpu",
    "what megatron.training needs to run without CUDA",
    [
        *[_stand_in(path) for path in STAND_INS],
        *[_refusal(path) for path in NEEDS_A_GPU if _is_there(path)],
        torch_patch(
            name="generator",
            target="torch:Generator",
            reason="a TorchFunctionMode does not see it; a generator for CUDA is one of the CPU",
            make=_always(stand_in.Generator),
        ),
        torch_patch(
            name="default-device",
            target="torch.utils._device:DeviceContext.__init__",
            reason="torch.set_default_device and torch.device as a block come after our mode",
            make=_device_context,
        ),
        torch_patch(
            name="record-stream",
            target="torch:Tensor.record_stream",
            reason="takes nothing but a real CUDA stream",
            make=_always(stand_in.record_stream),
        ),
        torch_patch(
            name="accelerator-current",
            target="torch.accelerator:current_accelerator",
            reason="a CUDA build of torch names an accelerator that is not there; asked by "
            "init_process_group and by every torch.optim step",
            make=_always(stand_in.current_accelerator),
        ),
        torch_patch(
            name="accelerator-available",
            target="torch.accelerator:is_available",
            reason="DataLoader(pin_memory=True) asks it",
            make=_always(stand_in.no_accelerator),
        ),
        torch_patch(
            name="accelerator-count",
            target="torch.accelerator:device_count",
            reason="goes with accelerator-available",
            make=_always(stand_in.no_accelerator_devices),
        ),
        torch_patch(
            name="thread-device",
            target="threading:Thread._bootstrap_inner",
            reason="a TorchFunctionMode belongs to one thread; new threads enter their own",
            make=_thread_bootstrap,
        ),
        torch_patch(
            name="backward-device",
            target="torch.autograd:_engine_run_backward",
            reason="a TorchFunctionMode is off inside its own handler, so the Python of autograd "
            "functions that Tensor.backward() runs would not see it",
            make=_run_backward,
        ),
        torch_patch(
            name="loader-seed",
            target="torch.utils.data.dataloader:_BaseDataLoaderIter.__init__",
            reason="draws a seed from the generator of the CPU, from which layers draw here: a "
            "resumed run, which makes its iterators later, would draw other numbers",
            make=_loader_iterator,
        ),
        megatron_patch(
            name="rng-get",
            target="megatron.core.tensor_parallel.random:_get_cuda_rng_state",
            reason="reads the state of a CUDA generator",
            make=_cuda_rng_get,
        ),
        megatron_patch(
            name="rng-set",
            target="megatron.core.tensor_parallel.random:_set_cuda_rng_state",
            reason="queues the change until CUDA initialises, which never happens",
            make=_cuda_rng_set,
        ),
        megatron_patch(
            name="inference-between-stages",
            target="megatron.core.inference.communication_utils:_is_cuda",
            reason="asserts that what pipeline stages of the inference engine exchange is on a GPU",
            make=_always(_is_there_at_all),
        ),
        megatron_patch(
            name="dispatcher-splits",
            target="megatron.core.transformer.moe.token_dispatcher:maybe_move_tensor_to_cpu",
            reason="leaves CPU tensors alone, but all_to_all_single wants split sizes as numbers",
            make=_move_splits,
        ),
    ],
)

_ENVIRONMENT = {
    # Megatron sets or asserts it for a GPU; on a CPU it costs nothing and keeps it quiet.
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    # torch: tensors of 2 MB and more on huge pages, which are 500 times fewer to fault in. It is
    # read before a process's first tensor.
    "THP_MEM_ALLOC_ENABLE": "1",
}


@contextmanager
def cpu() -> Iterator[None]:
    """Run Megatron on this machine's CPU for the duration of a ``with`` block.

    Importing ``grove_megatron`` changes nothing; entering this applies the ``wheel`` and
    ``cpu`` patch sets, leaving it restores the identical objects. Nested use is allowed.

    Raises:
        PatchError: Megatron or torch is not what the patches were written for.
        ValueError: Megatron was imported before and has found TransformerEngine.
    """
    if CPU.active:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(_environment(_ENVIRONMENT))
        stack.enter_context(without_gpu_packages())
        stack.enter_context(_without_import_warnings())
        stack.enter_context(WHEEL.applied())
        stack.enter_context(CPU.applied())
        stack.enter_context(_eager())
        stack.enter_context(_without_rng_warning())
        stack.enter_context(CudaMeansCpu())
        yield


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _eager() -> Iterator[None]:
    # Megatron decorates with torch.compile when it is imported, before any of its flags is read.
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _without_import_warnings() -> Iterator[None]:
    # Megatron warns a dozen times of what every CPU machine lacks.
    with warnings.catch_warnings():
        for message in (
            "Transformer Engine and Apex are not installed",
            "Apex is not installed",
            "Only transformer-engine",
            "absl.logging is not installed",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


@contextmanager
def _without_rng_warning() -> Iterator[None]:
    # The tracker warns when the CPU generator moves inside a CUDA fork. Here they are one
    # generator, the move is the point, and the fork restores it.
    def keep(record: logging.LogRecord) -> bool:
        return "CPU RNG state changed within GPU RNG context" not in record.getMessage()

    tracker_logger = logging.getLogger("megatron.core.tensor_parallel.random")
    tracker_logger.addFilter(keep)
    try:
        yield
    finally:
        tracker_logger.removeFilter(keep)
