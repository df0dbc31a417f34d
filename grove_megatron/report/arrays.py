"""Arrays as short JSON: [dtype, shape, base64 of zlib of the little-endian bytes]."""

import base64
import binascii
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# Of an array of one interval; those of the largest models have some megabytes.
_MOST_BYTES = 2**30
_DTYPES = ("u1", "u2", "u4", "u8", "f4")


def encode(array: Array) -> list[Any]:
    """Counts (integers of 0 or more) in the narrowest type that holds them; floats as fp32."""
    if array.dtype.kind == "f":
        dtype = "f4"
    else:
        most = int(array.max(initial=0))
        assert int(array.min(initial=0)) >= 0, "counts are not negative"
        dtype = next(d for d in _DTYPES[:4] if most <= np.iinfo(d).max)
    raw = np.ascontiguousarray(array.astype(f"<{dtype}")).tobytes()
    return [dtype, list(array.shape), base64.b64encode(zlib.compress(raw)).decode("ascii")]


class Encoded:
    """An array of a record, decoded when it is asked for: of many intervals few are at once.

    ``numpy.asarray`` of it is the whole; a slice along the first dimension alone needs no more
    memory than itself, after the first.

    Args:
        encoded: what :func:`encode` makes; a ValueError where its shape or type is none.
        damaged: the message for when the rest turns out to be none.
    """

    def __init__(self, encoded: Any, damaged: str) -> None:
        _header(encoded)
        self.shape: tuple[int, ...] = tuple(encoded[1])
        self._encoded, self._damaged = encoded, damaged
        self._slices: list[bytes] = []

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        slices = [self[n] for n in range(len(self))] if self._slices else []
        whole = np.stack(slices) if slices else self._whole()
        return whole if dtype is None else whole.astype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> Array:
        """[...] of the first dimension, as :func:`decode` gives it."""
        if not self._slices:
            # Its own compression for each, that the next one is found without the others.
            whole = self._whole()
            self._slices = [zlib.compress(one.tobytes(), 1) for one in whole]
            self._encoded, self._dtype = None, whole.dtype
        raw = zlib.decompress(self._slices[index])
        return np.frombuffer(raw, self._dtype).reshape(self.shape[1:])

    def _whole(self) -> Array:
        try:
            return decode(self._encoded)
        except ValueError as error:
            raise ValueError(f"{self._damaged}: {error}") from None


@dataclass(frozen=True)
class Added:
    """The sum of arrays of one shape, made when it is asked for, one of them after the other."""

    parts: Sequence["Array | Encoded | Added"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[0].shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        whole = reduce(np.add, self.parts)
        return np.asarray(whole, dtype)

    def __getitem__(self, index: int) -> Array:
        """[...] of the first dimension."""
        return np.asarray(reduce(np.add, (part[index] for part in self.parts)))


def _header(encoded: Any) -> tuple[str, list[int], Any, int]:
    """Type, shape, text and bytes of what :func:`encode` made.

    Raises:
        ValueError: it is not that.
    """
    try:
        dtype, shape, text = encoded
        if dtype not in _DTYPES:
            raise ValueError(f"its dtype is not one of {', '.join(_DTYPES)}")
        size = np.dtype(dtype).itemsize * prod(map(int, shape))
        if min(shape, default=0) < 0 or size > _MOST_BYTES:
            raise ValueError("its shape is none of a record")
    except (TypeError, ValueError) as error:
        raise ValueError(f"array ({str(encoded)[:40]!r}) cannot be decoded: {error}") from None
    return dtype, shape, text, size


def decode(encoded: Any) -> Array:
    """Undo :func:`encode`: int64 for counts, fp32 for floats.

    Raises:
        ValueError: it is not what :func:`encode` makes.
    """
    dtype, shape, text, size = _header(encoded)
    try:
        # No more than that, whatever the compressed bytes would become.
        raw = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
        if len(raw) != size:
            raise ValueError("it has not as many entries as its shape")
    except (TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise ValueError(f"array ({str(encoded)[:40]!r}) cannot be decoded: {error}") from None
    array = np.frombuffer(raw, f"<{dtype}").reshape(shape)
    return array.astype(np.float32 if dtype == "f4" else np.int64)
