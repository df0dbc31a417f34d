"""The routing of a router trace, replayed."""

import numpy as np
import torch
from torch import Tensor

from ..checks.problem import Problem, Refusal
from ..report.arrays import Array
from ..report.trace import Trace, faults
from .sizes import Sizes


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
        self._held: tuple[str, Array] | None = None
        if found := [p for name in layers for p in self._problems(name, sizes.experts)]:
            raise Refusal(found)

    def experts(self, layer: str, step: int, rank: int) -> Tensor:
        """The rank's slice; slices differ by one token where the ranks do not divide them."""
        chosen = self._of(layer)
        first, end = (len(chosen) * n // self._ranks for n in (rank, rank + 1))
        return torch.from_numpy(chosen[first:end].astype(np.int64))

    def _of(self, layer: str) -> Array:
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
        return [*faults(path, name, chosen, experts)]
