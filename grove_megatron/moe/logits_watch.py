"""Whether a router's logits were finite, remembered on the device; read when a job fails.

Looking waits for nothing and talks to no other rank: three small kernels over [T, E] a forward
pass, into a slot of a ring. Nobody reads it while the job trains.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PASSES = 256
"""Forward passes remembered: microbatches of the last iterations, recomputed ones too."""


@dataclass(frozen=True, kw_only=True)
class NotFinite:
    """The first pass remembered whose logits were not all finite.

    Args:
        iteration: as :class:`LogitsWatch` was told.
        values: how many were nan or infinite.
        tokens, experts: the shape of the logits.
    """

    iteration: int
    values: int
    tokens: int
    experts: int


class LogitsWatch:
    """The memory of one router.

    Args:
        iteration: the number of the one that runs; called in every forward pass.
    """

    def __init__(self, iteration: Callable[[], int]) -> None:
        self._iteration = iteration
        self._counts: Tensor | None = None
        self._passes: list[tuple[int, tuple[int, int]]] = []
        self._seen = 0

    @torch.no_grad()
    def see(self, logits: Tensor) -> None:
        """Count what is not finite in the logits, [..., E], of a forward pass."""
        logits = logits.detach()
        if self._counts is None:
            # What an inference engine made could not be written to by a training.
            with torch.inference_mode(False):
                self._counts = torch.zeros(PASSES, dtype=torch.int64, device=logits.device)
        slot = self._seen % PASSES
        experts = logits.shape[-1]
        described = (self._iteration(), (logits.numel() // experts, experts))
        if self._seen < PASSES:
            self._passes.append(described)
        else:
            self._passes[slot] = described
        self._seen += 1
        # x - x is 0 for a finite x, and nan otherwise.
        torch.sum((logits - logits).flatten() != 0, dim=0, out=self._counts[slot])

    def first(self) -> NotFinite | None:
        """The first pass that was not finite, or None; waits for the device."""
        if self._counts is None:
            return None
        counts = self._counts.tolist()
        for index in range(max(0, self._seen - PASSES), self._seen):
            slot = index % PASSES
            if counts[slot]:
                iteration, (tokens, experts) = self._passes[slot]
                return NotFinite(
                    iteration=iteration, values=counts[slot], tokens=tokens, experts=experts
                )
        return None
