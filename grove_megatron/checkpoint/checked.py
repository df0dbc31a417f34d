"""Read every tensor once: cast it, look for what is not a number, take its checksum."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from .safetensors_io import NAME_OF, bytes_of
from .transforms import Shape
from .weights import DTYPES, TensorInfo, Weights, usual_dtype

# Tensors that are read before they are asked for; they bound the memory.
_AHEAD = 4


@dataclass(frozen=True)
class Plan:
    """What is to become of one tensor.

    Args:
        shape: its shape.
        dtype: to write.
        skipped: written as zeros; nothing of the source is used.
    """

    shape: Shape
    dtype: torch.dtype
    skipped: bool = False

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def plan(
    expected: Mapping[str, Shape],
    infos: Mapping[str, TensorInfo],
    dtype: torch.dtype | None,
    skip: frozenset[str],
    keep_dtype: Callable[[str], bool],
) -> dict[str, Plan]:
    """Every tensor to write, in the order of ``expected``.

    Args:
        expected: names and shapes.
        infos: what the source has.
        dtype: for all; None: the source's.
        skip: names that are written as zeros.
        keep_dtype: names to which ``dtype`` does not apply.
    """
    usual = DTYPES[usual_dtype(infos)]
    plans = {}
    for name, shape in expected.items():
        own = DTYPES.get(infos[name].dtype, usual) if name in infos else usual
        cast = own if dtype is None or keep_dtype(name) else dtype
        plans[name] = Plan(shape, cast, skipped=name in skip)
    return plans


class CheckedReader:
    """Tensors of a source as they are to be written, and what was wrong with them.

    Args:
        source: of the tensors.
        plans: of everything that will be read.
        checksums: of tensors as the source's own manifest has them: (dtype name, sha256).
    """

    def __init__(
        self, source: Weights, plans: Mapping[str, Plan], checksums: Mapping[str, tuple[str, str]]
    ):
        self.problems: list[str] = []
        self._source, self._plans, self._known = source, plans, checksums
        self._infos = source.infos()
        self._worker = ThreadPoolExecutor(1)
        self._coming: Iterator[str] = iter(())
        self._ahead: deque[tuple[str, Future[_Found]]] = deque()
        self._taken: dict[str, str] = {}

    def expect(self, names: Iterable[str]) -> None:
        """Begin to read these, the next ones in this order, while the caller writes others."""
        assert not self._ahead, "the last ones have not been read"
        self._coming = iter(names)
        self._look_ahead()

    def _look_ahead(self) -> None:
        while len(self._ahead) < _AHEAD and (name := next(self._coming, None)) is not None:
            self._ahead.append((name, self._worker.submit(self._examined, name)))

    def read(self, name: str) -> Tensor:
        """The tensor, contiguous, in the planned dtype; zeros if it is unusable."""
        if not self._ahead:
            self.expect([name])
        first, future = self._ahead.popleft()
        assert first == name, f"{first} comes before {name}"
        found = future.result()
        self._look_ahead()
        # Query, key and value are one tensor in a Megatron checkpoint.
        self.problems += [line for line in found.problems if line not in self.problems]
        if found.sha256:
            self._taken[name] = found.sha256
        return found.tensor

    def take(self) -> dict[str, str]:
        """sha256 of the tensors read since the last call, by name."""
        taken, self._taken = self._taken, {}
        return taken

    def _examined(self, name: str) -> "_Found":
        """Read one tensor and look at it; in the worker."""
        plan = self._plans[name]
        if plan.skipped:
            zeros = torch.zeros(plan.shape, dtype=plan.dtype)
            return _Found(zeros, _sha256(zeros), [])
        try:
            own = self._source.read(name)
        except ValueError as error:
            return _Found(torch.zeros(plan.shape, dtype=plan.dtype), "", [str(error)])
        tensor = own.to(plan.dtype).contiguous()
        sha256 = _sha256(tensor)
        where = "" if name not in self._infos else f" in {self._infos[name].origin}"
        problems = []
        if own.dtype != tensor.dtype and _is_finite(own) and not _is_finite(tensor):
            problems.append(
                f"{name}{where} has entries that are too large for {tensor.dtype}; choose another "
                f"--dtype, or --skip {name} writes zeros"
            )
        elif not _is_finite(tensor):
            problems.append(
                f"{name}{where} has entries that are not finite; --skip {name} writes zeros"
            )
        dtype, known = self._known.get(name, ("", ""))
        if dtype == NAME_OF[own.dtype]:
            # The manifest knows the tensor as it was before a cast.
            before = sha256 if own.dtype == tensor.dtype else _sha256(own)
            if before != known:
                problems.append(
                    f"{name}{where} (sha256 {before[:12]}...) differs from its manifest "
                    f"({known[:12]}...); if it was changed on purpose, remove the manifest"
                )
        return _Found(tensor, sha256, problems)

    def close(self) -> None:
        self._worker.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Found:
    """A tensor to write, the checksum of its bytes, and what is wrong with it, a line each.

    The checksum of what cannot be read is empty.
    """

    tensor: Tensor
    sha256: str
    problems: list[str]


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.numel():
        return True
    # Both are NaN if any entry is.
    smallest, largest = torch.aminmax(tensor)
    return bool(torch.isfinite(smallest) & torch.isfinite(largest))


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(bytes_of(tensor.contiguous())).hexdigest()
