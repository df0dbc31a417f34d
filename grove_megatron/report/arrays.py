"""Arrays as short JSON: [dtype, shape, base64 of zlib of the little-endian bytes]."""

import base64
import binascii
import zlib
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


def decode(encoded: Any) -> Array:
    """Undo :func:`encode`: int64 for counts, fp32 for floats.

    Raises:
        ValueError: it is not what :func:`encode` makes.
    """
    try:
        dtype, shape, text = encoded
        if dtype not in _DTYPES:
            raise ValueError(f"its dtype is not one of {', '.join(_DTYPES)}")
        size = np.dtype(dtype).itemsize * prod(map(int, shape))
        if min(shape, default=0) < 0 or size > _MOST_BYTES:
            raise ValueError("its shape is none of a record")
        # No more than that, whatever the compressed bytes would become.
        raw = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
        if len(raw) != size:
            raise ValueError("it has not as many entries as its shape")
    except (TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise ValueError(f"array ({str(encoded)[:40]!r}) cannot be decoded: {error}") from None
    array = np.frombuffer(raw, f"<{dtype}").reshape(shape)
    return array.astype(np.float32 if dtype == "f4" else np.int64)
