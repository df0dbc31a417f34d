"""What ``torch.cuda`` answers while Megatron runs on a CPU.

Streams and events exist and have always finished; as in CUDA, time between events that nobody
recorded is an error. There is one device, number 0: this process's CPU. Memory questions are
answered with zero.
"""

import contextlib
import threading
import types
from collections.abc import Iterator
from typing import Any

import torch


class Event:
    """An event that completes at once. Misuse that CUDA reports is reported here too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.recorded = False

    def record(self, stream: "Stream | None" = None) -> None:
        self.recorded = True

    def wait(self, stream: "Stream | None" = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end_event: "Event") -> float:
        if not (self.recorded and end_event.recorded):
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        return 0.0


class Stream:
    """A stream on which everything has already finished."""

    device = torch.device("cpu")
    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return (0, -1)

    def wait_event(self, event: Event) -> None:
        event.wait(self)

    def wait_stream(self, stream: "Stream") -> None:
        pass

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


DEFAULT_STREAM = Stream()


class _PerThread(threading.local):
    stream = DEFAULT_STREAM


_current = _PerThread()


def current_stream(device: Any = None) -> Stream:
    return _current.stream


def set_stream(stream: Stream) -> None:
    _current.stream = stream


@contextlib.contextmanager
def stream(stream: Stream | None) -> Iterator[None]:
    before = _current.stream
    if stream is not None:
        _current.stream = stream
    try:
        yield
    finally:
        _current.stream = before


@contextlib.contextmanager
def device(device: Any) -> Iterator[None]:
    yield


def get_device_properties(device: Any = None) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        name="cpu", major=8, minor=0, total_memory=0, multi_processor_count=1, warp_size=32
    )


def get_device_capability(device: Any = None) -> tuple[int, int]:
    return (8, 0)


def get_device_name(device: Any = None) -> str:
    return "cpu"


def get_rng_state(device: Any = "cuda") -> torch.Tensor:
    return torch.get_rng_state()


def set_rng_state(new_state: torch.Tensor, device: Any = "cuda") -> None:
    torch.set_rng_state(new_state)


def manual_seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    # torch.manual_seed calls this right after it has seeded the CPU generator.
    pass


def is_available() -> bool:
    return True


def is_initialized() -> bool:
    return True


def device_count() -> int:
    return 1


def current_device() -> int:
    # An int, as in CUDA: Megatron passes it to torch.device("cuda", index).
    return 0


def set_device(device: Any) -> None:
    pass


def synchronize(device: Any = None) -> None:
    pass


def is_current_stream_capturing() -> bool:
    return False


def empty_cache() -> None:
    pass


def no_memory(*args: Any, **kwargs: Any) -> int:
    return 0


def mem_get_info(device: Any = None) -> tuple[int, int]:
    return (0, 0)


class _NoStats(dict[str, int]):
    def __missing__(self, key: str) -> int:
        return 0


def memory_stats(device: Any = None) -> dict[str, int]:
    return _NoStats()


def nvtx_range_push(msg: str) -> int:
    return 0


def nvtx_range_pop() -> int:
    return 0


def record_stream(tensor: torch.Tensor, stream: Stream) -> None:
    # Memory of a CPU tensor is not handed to another stream.
    pass


def current_accelerator(check_available: bool = False) -> None:
    return None


def no_accelerator() -> bool:
    return False


def no_accelerator_devices() -> int:
    return 0
