"""What ``torch.cuda`` answers while Megatron runs on a CPU.

Streams and events exist and have always finished; as in CUDA, time between events that nobody
recorded is an error. There is one device, number 0: this process's CPU. Its generator of random
numbers is the CPU's. Memory and sensors are answered with zero. What only a GPU has is an error
that says so. ``cuda_names.py`` says which name is which.
"""

import threading
import types
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch

from .device_mode import names_accelerator


class Event:
    """An event that completes at once. Misuse that CUDA reports is reported here too."""

    device = torch.device("cpu")
    cuda_event = event_id = 0

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
    cuda_stream = native_handle = stream_id = device_index = device_type = priority = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._entered: list[StreamContext] = []

    def __enter__(self) -> "Stream":
        self._entered.append(StreamContext(self))
        self._entered[-1].__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._entered.pop().__exit__()

    @staticmethod
    def is_capturing() -> bool:
        return False

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


def set_stream(stream: Stream | None) -> None:
    if stream is not None:
        _current.stream = stream


class StreamContext:
    """A stream that is the current one within the block; None: the one that is."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream
        self._before: list[Stream] = []

    def __enter__(self) -> None:
        self._before.append(_current.stream)
        if self.stream is not None:
            _current.stream = self.stream

    def __exit__(self, *error: object) -> None:
        _current.stream = self._before.pop()


def stream(stream: Stream | None) -> StreamContext:
    return StreamContext(stream)


class device:
    """The device of the block: always the one there is. torch asks ``isinstance`` of it."""

    idx = 0

    def __init__(self, device: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


class device_of(device):
    """The same, named by a tensor."""


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


def get_rng_state_all() -> list[torch.Tensor]:
    return [get_rng_state()]


def set_rng_state(new_state: torch.Tensor, device: Any = "cuda") -> None:
    torch.set_rng_state(new_state)


def set_rng_state_all(new_states: Iterable[torch.Tensor]) -> None:
    for state in new_states:
        set_rng_state(state)


def manual_seed(seed: int) -> None:
    # Also after torch.manual_seed, which has just given the same generator the same seed.
    torch.default_generator.manual_seed(seed)


def seed() -> None:
    torch.default_generator.seed()


def initial_seed() -> int:
    return torch.default_generator.initial_seed()


class _TypeOfGenerator(type(torch._C.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)

    def __call__(cls, device: Any = "cpu") -> torch._C.Generator:
        return torch._C.Generator("cpu" if names_accelerator(device) else device)


class Generator(torch._C.Generator, metaclass=_TypeOfGenerator):
    """``torch.Generator``, which no TorchFunctionMode sees: one for CUDA is one of the CPU."""


def is_available() -> bool:
    return True


def is_initialized() -> bool:
    return True


def device_count() -> int:
    return 1


def current_device() -> int:
    # An int, as in CUDA: Megatron passes it to torch.device("cuda", index).
    return 0


def memory_summary(device: Any = None, abbreviated: bool = False) -> str:
    return "no CUDA memory: this is the CPU runtime of grove_megatron"


def is_current_stream_capturing() -> bool:
    return False


def nothing(*args: Any, **kwargs: Any) -> None:
    """What there is nothing to do for."""


def zero(*args: Any, **kwargs: Any) -> int:
    """What is not measured."""
    return 0


def no_list(*args: Any, **kwargs: Any) -> list[Any]:
    return []


def mem_get_info(device: Any = None) -> tuple[int, int]:
    return (0, 0)


class _NoStats(dict[str, int]):
    def __missing__(self, key: str) -> int:
        return 0


def memory_stats(device: Any = None) -> dict[str, int]:
    return _NoStats()


def record_stream(tensor: torch.Tensor, stream: Stream) -> None:
    # Memory of a CPU tensor is not handed to another stream.
    pass


def current_accelerator(check_available: bool = False) -> None:
    return None


def no_accelerator() -> bool:
    return False


def no_accelerator_devices() -> int:
    return 0


def refusing(name: str) -> Callable[[Any], Any]:
    """``original -> replacement``, which says that ``name`` needs a GPU when it is called."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"{name} needs a GPU, and the CPU runtime of grove_megatron has none")

    def make(original: Any) -> Any:
        if not isinstance(original, type):
            return refuse
        # It stays a type: it is asked about with isinstance and written in annotations.
        return type(original.__name__, (original,), {"__new__": refuse})

    return make
