"""Read every tensor once: cast it, look for what is not a number, take its checksum."""

import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from .safetensors_io import NAME_OF, bytes_of
from .transforms import Shape
from .weights import DTYPES, TensorInfo, Weights

# Tensors whose checksums may be outstanding: they bound the memory that waits for the hash.
_OUTSTANDING = 4


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
    known = [DTYPES[info.dtype] for info in infos.values() if info.dtype in DTYPES]
    usual = max(set(known), key=known.count, default=torch.float32)
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
        self._outstanding: deque[tuple[str, Future[_Found]]] = deque()
        self._taken: dict[str, str] = {}

    def read(self, name: str) -> Tensor:
        """The tensor, contiguous, in the planned dtype; zeros if it is unusable."""
        plan = self._plans[name]
        if plan.skipped:
            tensor = own = torch.zeros(plan.shape, dtype=plan.dtype)
        else:
            try:
                own = self._source.read(name)
                tensor = own.to(plan.dtype).contiguous()
            except ValueError as error:
                # Query, key and value are one tensor in a Megatron checkpoint.
                if str(error) not in self.problems:
                    self.problems.append(str(error))
                return torch.zeros(plan.shape, dtype=plan.dtype)
        while len(self._outstanding) >= _OUTSTANDING:
            self._take_one()
        known = None if plan.skipped else self._known.get(name)
        # The manifest knows the tensor as it was before a cast.
        before = own if known is not None and known[0] == NAME_OF[own.dtype] else None
        self._outstanding.append((name, self._worker.submit(_examine, tensor, before)))
        return tensor

    def take(self) -> dict[str, str]:
        """sha256 of the tensors read since the last call, by name; waits for them."""
        while self._outstanding:
            self._take_one()
        taken, self._taken = self._taken, {}
        return taken

    def _take_one(self) -> None:
        name, future = self._outstanding.popleft()
        found = future.result()
        self._taken[name] = found.sha256
        where = "" if name not in self._infos else f" in {self._infos[name].origin}"
        if not found.finite:
            self.problems.append(
                f"{name}{where} has entries that are not finite; --skip {name} writes zeros"
            )
        if found.before is not None and found.before != (known := self._known[name][1]):
            self.problems.append(
                f"{name}{where} (sha256 {found.before[:12]}...) differs from its manifest "
                f"({known[:12]}...); if it was changed on purpose, remove the manifest"
            )

    def close(self) -> None:
        self._worker.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Found:
    """Of one tensor: its checksum, whether it is finite, and the checksum before the cast."""

    sha256: str
    finite: bool
    before: str | None


def _examine(tensor: Tensor, before: Tensor | None) -> _Found:
    """Look at a tensor to write, and at what it was cast from if its checksum is asked for."""
    finite = True
    if tensor.numel():
        # Both are NaN if any entry is.
        smallest, largest = torch.aminmax(tensor)
        finite = bool(torch.isfinite(smallest) & torch.isfinite(largest))
    sha256 = _sha256(tensor)
    if before is None or before.dtype == tensor.dtype:
        return _Found(sha256, finite, None if before is None else sha256)
    return _Found(sha256, finite, _sha256(before))


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(bytes_of(tensor.contiguous())).hexdigest()
