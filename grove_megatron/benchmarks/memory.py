"""Peak memory of a computation, in bytes of what it allocates itself."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensor storages made while it is active, until they are freed.

    Sees what operators return, not what an operator allocates and frees inside itself; so it is a
    lower bound, and the same one for every variant. A storage that is made smaller while somebody
    holds it, as Megatron does with an output that it will compute again, counts as it is then.

    Attributes:
        now: bytes alive.
        peak: the most that were alive at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __enter__(self) -> "LiveBytes":
        # Not an operator, so that no dispatch mode is told.
        self._resize = resize = torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            resized = resize(storage, size)
            if storage._cdata in self._alive:
                self._counted(storage._cdata, storage.nbytes())
            return resized

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign,assignment]
        super().__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*failure)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # Outputs that alias an input were born with it.
        known = {s._cdata for s in _storages((args, kwargs))}
        result = func(*args, **kwargs)
        for storage in _storages(result):
            if storage._cdata not in known and storage._cdata not in self._alive:
                self._born(storage)
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        self._counted(key, storage.nbytes())
        weakref.finalize(storage, self._freed, key)

    def _counted(self, key: int, size: int) -> None:
        self.now += size - self._alive.get(key, 0)
        self._alive[key] = size
        self.peak = max(self.peak, self.now)

    def _freed(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [
        leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)
    ]


def peak_bytes(run: Callable[[], object], on_cuda: bool) -> int:
    """The most bytes that ``run`` had allocated at one time, beyond what was there before."""
    if not on_cuda:
        with LiveBytes() as live:
            run()
        return live.peak
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)
