"""Router traces: the experts that every token of a real run chose, in a safetensors file.

One tensor for each layer, named ``layers.`` and the layer as a record of metrics names it
(``layers.3``, ``layers.mtp 1``): [T, K] of any integer type, the routed experts of every token,
each at most once, -1 where it has no more. Rows are tokens in the order of the ranks that owned
them, so that the ranks of a simulation get equal slices. Metadata: ``format`` is ``grove_trace``,
``experts`` and ``groups`` are the model's; without metadata the command line has to say them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checks.problem import Problem, Refusal
from .draw import NONE
from .sizes import Sizes

FORMAT, _PREFIX = "grove_trace", "layers."


@dataclass(frozen=True)
class Trace:
    """What a file holds.

    Attributes:
        path: of the file.
        layers: names.
        experts, groups: of the model; None where the file does not say.
        topk: the most experts of a token.
        tokens: of each layer, the most.
    """

    path: Path
    layers: tuple[str, ...]
    experts: int | None
    groups: int | None
    topk: int
    tokens: int

    def of(self, layer: str) -> Tensor:
        """[T, K] as it was written, ``draw.NONE`` where a token has no more experts."""
        with safe_open(self.path, "pt") as file:
            chosen: Tensor = file.get_tensor(_PREFIX + layer)
        return chosen


def write_trace(
    path: str | os.PathLike[str], layers: Mapping[str, Tensor], *, experts: int, groups: int = 0
) -> None:
    """Write a trace in one step.

    Args:
        path: of the file; replaced where it is.
        layers: [T, K] integers for each layer, by the name a record has for it (``3``, ``mtp 1``).
        experts, groups: of the model.

    Raises:
        Refusal: that would be no trace.
        OSError: it cannot be written.
    """
    path = Path(path)
    found = [p for name, of in layers.items() for p in _of_layer(path, name, of, experts)]
    if found := found or _of_names(path, list(layers)):
        raise Refusal(found)
    about = {"format": FORMAT, "experts": str(experts), "groups": str(groups)}
    narrow = torch.int16 if experts <= 2**15 else torch.int32
    tensors = {_PREFIX + name: of.to(narrow).contiguous() for name, of in layers.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, about)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_trace(path: Path) -> Trace:
    """Look at a trace without its tokens.

    Raises:
        Refusal: it cannot be read, or is none.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        text = f"cannot be read: {error}; name a safetensors file with a tensor for each layer"
        raise Refusal([Problem("trace", str(path), text)]) from None
    layers = [name.removeprefix(_PREFIX) for name in shapes if name.startswith(_PREFIX)]
    found = _of_names(path, layers)
    if (of := about.get("format", FORMAT)) != FORMAT:
        text = f"has format ({of}), not ({FORMAT}); name a trace"
        found.append(Problem("trace", str(path), text))
    sizes = {name: about.get(name) for name in ("experts", "groups")}
    for name, size in sizes.items():
        if size is not None and not size.isdecimal():
            text = f"has {name} ({size}), which is no number; write it with write_trace"
            found.append(Problem("trace", str(path), text))
    for name in layers:
        if len(shape := shapes[_PREFIX + name]) != 2 or 0 in shape:
            text = f"has for layer ({name}) the shape {shape}, not [tokens, topk]; write it anew"
            found.append(Problem("trace", str(path), text))
    if found:
        raise Refusal(found)
    experts, groups = (None if size is None else int(size) for size in sizes.values())
    of_layers = [shapes[_PREFIX + name] for name in layers]
    return Trace(
        path=path,
        layers=tuple(sorted(layers, key=lambda name: (name.startswith("mtp"), len(name), name))),
        experts=experts,
        groups=groups,
        topk=max(shape[1] for shape in of_layers),
        tokens=max(shape[0] for shape in of_layers),
    )


class Replayed:
    """The routing of a trace; see :class:`.routing.Routing`.

    Args:
        sizes: of the simulation.
        trace: the tokens of real ranks.
        layers: which of its layers.

    Raises:
        Refusal: tokens that are none of such a model, or fewer than ranks.
    """

    steps = 1

    def __init__(self, sizes: Sizes, trace: Trace, layers: tuple[str, ...]) -> None:
        self.layers = layers
        self._trace, self._ranks = trace, sizes.ranks
        self._held: tuple[str, Tensor] | None = None
        if found := [p for name in layers for p in self._problems(name, sizes.experts)]:
            raise Refusal(found)

    def experts(self, layer: str, step: int, rank: int) -> Tensor:
        """The rank's slice; slices differ by one token where the ranks do not divide them."""
        chosen = self._of(layer)
        first, end = (len(chosen) * n // self._ranks for n in (rank, rank + 1))
        return chosen[first:end].long()

    def _of(self, layer: str) -> Tensor:
        """A layer's tokens. Every rank asks for them in turn, so one layer is held."""
        if self._held is None or self._held[0] != layer:
            self._held = (layer, self._trace.of(layer))
        return self._held[1]

    def _problems(self, name: str, experts: int) -> list[Problem]:
        path, chosen = self._trace.path, self._of(name)
        if len(chosen) < self._ranks:
            text = (
                f"has for layer ({name}) fewer tokens ({len(chosen)}) than --ranks "
                f"({self._ranks}); use fewer ranks, or a longer trace"
            )
            return [Problem("trace", str(path), text)]
        return _of_layer(path, name, chosen, experts)


def _of_names(path: Path, layers: list[str]) -> list[Problem]:
    if layers:
        return []
    text = f"has no tensor ({_PREFIX}N); write it with write_trace"
    return [Problem("trace", str(path), text)]


def _of_layer(path: Path, name: str, chosen: Tensor, experts: int) -> list[Problem]:
    """What is wrong with the tokens of a layer."""
    what = f"has in layer ({name})"
    if chosen.dtype.is_floating_point or chosen.dtype == torch.bool or chosen.dim() != 2:
        shape = [*chosen.shape]
        text = f"{what} {chosen.dtype} of shape {shape}, not integers [tokens, topk]; write it anew"
        return [Problem("trace", str(path), text)]
    chosen = chosen.long()
    low, high = int(chosen.min()), int(chosen.max())
    if low < NONE or high >= experts:
        worst = low if low < NONE else high
        text = f"{what} expert ({worst}), not one of 0 to {experts - 1}; use the model's own trace"
        return [Problem("trace", str(path), text)]
    ordered = chosen.sort(1).values
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NONE)).any():
        text = f"{what} a token with one expert twice; write each once"
        return [Problem("trace", str(path), text)]
    return []
