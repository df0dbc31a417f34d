"""A word about experts that nothing is routed to: they no longer learn, and nothing fails."""

import numpy as np

from ..report.arrays import Array

ITERATIONS = 100
"""Without a token, until it is worth a line."""


class IdleExperts:
    """Says once of every expert that it has become idle, and again only if it was not meanwhile."""

    def __init__(self) -> None:
        self._said: Array = np.zeros((0, 0), bool)

    def see(self, idle_LE: Array, layers: tuple[str, ...], iteration: int) -> str | None:
        """A line about the experts that have become idle by now, or None.

        Args:
            idle_LE: [L, E] iterations an expert has been without tokens, see ``measures.Idle``.
            layers: their names.
            iteration: the last one counted.
        """
        if self._said.shape != idle_LE.shape:
            self._said = np.zeros(idle_LE.shape, bool)
        are_LE = idle_LE >= ITERATIONS
        new_LE = are_LE & ~self._said
        self._said = are_LE
        if not new_LE.any():
            return None
        named = "; ".join(
            f"layer {name}: {', '.join(map(str, np.flatnonzero(new_E)))}"
            for name, new_E in zip(layers, new_LE, strict=True)
            if new_E.any()
        )
        return (
            f"experts without a token for {ITERATIONS} iterations or more at iteration {iteration} "
            f"({named}) no longer learn; the job goes on. Balance the load: --moe-aux-loss-coeff, "
            "or --moe-router-enable-expert-bias"
        )
