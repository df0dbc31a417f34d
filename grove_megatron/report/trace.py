"""Router traces: the experts that every token of a real run chose, in a safetensors file.

One tensor for each layer, named ``layers.`` and the layer as a record of metrics names it
(``layers.3``, ``layers.mtp 1``): [T, K] of any integer type, the routed experts of every token,
each at most once, -1 where it has no more. Rows are tokens in the order of the ranks that owned
them, so that the ranks of a simulation get equal slices. Metadata: ``format`` is ``grove_trace``,
``experts`` and ``groups`` are the model's; without metadata the command line has to say them.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..checks.problem import Problem, Refusal
from ..placing.file import is_layer
from .arrays import Array

FORMAT, NONE = "grove_trace", -1
"""NONE stands in a token's list where it has no more experts."""
_PREFIX = "layers."
_ANEW = "write it with write_trace"
_SIZE = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Trace:
    """What a file holds.

    Attributes:
        path: of the file.
        layers: names.
        experts, groups: of the model; None where the file does not say.
        topk: the most experts of a token.
        tokens: of each layer, by its name.
    """

    path: Path
    layers: tuple[str, ...]
    experts: int | None
    groups: int | None
    topk: int
    tokens: Mapping[str, int]

    def of(self, layer: str) -> Array:
        """[T, K] integers as they were written, ``NONE`` where a token has no more experts.

        Raises:
            Refusal: it cannot be read.
        """
        try:
            with safe_open(self.path, "np") as file:
                chosen: Array = file.get_tensor(_PREFIX + layer)
        except (OSError, SafetensorError) as error:
            raise Refusal([_unreadable(self.path, error)]) from None
        return chosen


def write_trace(
    path: str | os.PathLike[str], layers: Mapping[str, Any], *, experts: int, groups: int = 0
) -> None:
    """Write a trace in one step.

    Args:
        path: of the file; replaced where it is.
        layers: [T, K] integers for each layer, an array or a tensor of the CPU, by the name a
            record has for it (``3``, ``mtp 1``).
        experts, groups: of the model.

    Raises:
        Refusal: that would be no trace.
        OSError: it cannot be written.
    """
    path = Path(path)
    arrays = {name: np.asarray(of) for name, of in layers.items()}
    sizes = {"experts": str(experts), "groups": str(groups)}
    found = [*_of_names(path, [*arrays]), *_of_sizes(path, sizes)]
    for name, of in arrays.items():
        is_whole = np.issubdtype(of.dtype, np.integer)
        if problems := [*_of_shape(path, name, of.shape, str(of.dtype), is_whole)]:
            found += problems
        else:
            found += faults(path, name, of, experts)
    if found:
        raise Refusal(found)
    narrow = np.int16 if experts <= 2**15 else np.int32
    tensors = {_PREFIX + n: np.ascontiguousarray(of.astype(narrow)) for n, of in arrays.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, {"format": FORMAT, **sizes})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_trace(path: Path) -> Trace:
    """Look at a trace without its tokens.

    Raises:
        Refusal: it cannot be read, or is none.
    """
    try:
        with safe_open(path, "np") as file:
            about = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: one.get_shape() for name, one in slices.items()}
            dtypes = {name: str(one.get_dtype()) for name, one in slices.items()}
    except (OSError, SafetensorError) as error:
        raise Refusal([_unreadable(path, error)]) from None
    layers = [name.removeprefix(_PREFIX) for name in shapes if name.startswith(_PREFIX)]
    sizes = {name: about[name] for name in ("experts", "groups") if name in about}
    found = [*_of_names(path, layers), *_of_sizes(path, sizes)]
    if (of := about.get("format", FORMAT)) != FORMAT:
        found.append(
            Problem("trace", str(path), f"has format ({of}), not ({FORMAT}); name a trace")
        )
    for name in layers:
        shape, dtype = shapes[_PREFIX + name], dtypes[_PREFIX + name]
        found += _of_shape(path, name, shape, dtype, dtype[0] in "IU")
    if found:
        raise Refusal(found)
    experts, groups = (int(sizes[n]) if n in sizes else None for n in ("experts", "groups"))
    layers.sort(key=lambda name: (name.startswith("mtp"), len(name), name))
    return Trace(
        path=path,
        layers=tuple(layers),
        experts=experts,
        groups=groups,
        topk=max(shapes[_PREFIX + name][1] for name in layers),
        tokens={name: shapes[_PREFIX + name][0] for name in layers},
    )


def faults(path: Path, name: str, chosen_TK: Array, experts: int) -> Iterator[Problem]:
    """What is wrong with the tokens of a layer.

    Args:
        path: of the trace.
        name: of the layer.
        chosen_TK: [T, K] integers.
        experts: of the layer.
    """
    what = f"has in layer ({name})"
    low, high = int(chosen_TK.min()), int(chosen_TK.max())
    if low < NONE or high >= experts:
        worst = low if low < NONE else high
        text = f"{what} expert ({worst}), not one of 0 to {experts - 1}; use the model's own trace"
        yield Problem("trace", str(path), text)
        return
    ordered = np.sort(chosen_TK, axis=1)
    is_one = ordered[:, 1:] == ordered[:, :-1]
    # Unsigned numbers have no -1.
    if (is_one & (ordered[:, 1:].astype(np.int64) != NONE)).any():
        yield Problem("trace", str(path), f"{what} a token with one expert twice; write each once")


def _of_names(path: Path, layers: Sequence[str]) -> Iterator[Problem]:
    if not layers:
        yield Problem("trace", str(path), f"has no tensor ({_PREFIX}N); {_ANEW}")
    for name in layers:
        if not is_layer(name):
            text = f"names a layer ({ascii(name)[1:-1][:60]}), where names are as (3) and (mtp 1)"
            yield Problem("trace", str(path), f"{text}; {_ANEW}")


def _of_sizes(path: Path, sizes: Mapping[str, str]) -> Iterator[Problem]:
    """Of the metadata."""
    known = {name: int(of) for name, of in sizes.items() if _SIZE.fullmatch(of)}
    for name, of in sizes.items():
        if name not in known:
            yield Problem(
                "trace", str(path), f"has {name} ({of[:60]}), which is no number; {_ANEW}"
            )
    experts, groups = known.get("experts"), known.get("groups")
    if experts == 0:
        yield Problem("trace", str(path), f"has experts (0), of which none can be chosen; {_ANEW}")
    elif experts and groups and experts % groups:
        text = f"has experts ({experts}), not a multiple of its groups ({groups}); {_ANEW}"
        yield Problem("trace", str(path), text)


def _of_shape(
    path: Path, name: str, shape: Sequence[int], dtype: str, is_whole: bool
) -> Iterator[Problem]:
    shape = [*shape]
    if len(shape) != 2 or 0 in shape:
        text = f"has for layer ({name}) the shape {shape}, not [tokens, topk]; write it anew"
        yield Problem("trace", str(path), text)
    if not is_whole:
        text = f"has for layer ({name}) values of type ({dtype}), not integers; write it anew"
        yield Problem("trace", str(path), text)


def _unreadable(path: Path, error: Exception) -> Problem:
    text = f"cannot be read: {error}; name a safetensors file with a tensor for each layer"
    return Problem("trace", str(path), text)
