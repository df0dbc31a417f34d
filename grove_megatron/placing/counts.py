"""What is known of how a layer routes: which units its tokens met together, and their load.

Shape suffixes: T tokens, U units (groups, or experts where there are none), S sets of units (ranks,
or nodes), D = 1 + the most units of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Counts:
    """Sums over some of a layer's tokens, padding left out.

    Attributes:
        together: [U, U] int64, tokens that met both; on the diagonal those that met the one.
        load: [U] int64, routed pairs (token, expert).
        degrees: [D] tokens by the number of units they met; fp64, of a record without groups it is
            what their mean says.
        met: [T, U] bool, every token; None where only the sums were recorded.
    """

    together: Array
    load: Array
    degrees: Array
    met: Array | None = None

    @property
    def tokens(self) -> float:
        return float(self.degrees.sum())

    @property
    def pairs(self) -> Array:
        """[U, U] fp64, the share of tokens that met both; 0 on the diagonal."""
        shares = self.together / max(1.0, self.tokens)
        np.fill_diagonal(shares, 0)
        return shares


@dataclass(frozen=True)
class Evidence:
    """A layer in parts that were counted one after the other: intervals, or pieces of a trace.

    Attributes:
        parts: one or more.
        counted: rows of a token as the job itself counted them, at the order and number of ranks
            that are asked about; None: they are not known.
    """

    parts: Sequence[Counts]
    counted: float | None = None


def summed(parts: Sequence[Counts]) -> Counts:
    """Several as one."""
    first, *rest = parts
    if not rest:
        return first
    met = [part.met for part in parts if part.met is not None]
    degrees = np.zeros(max(len(part.degrees) for part in parts))
    for part in parts:
        degrees[: len(part.degrees)] += part.degrees
    return Counts(
        together=np.sum([part.together for part in parts], axis=0),
        load=np.sum([part.load for part in parts], axis=0),
        degrees=degrees,
        met=np.concatenate(met) if len(met) == len(parts) else None,
    )


def of_tokens(chosen_TK: Array, experts: int, groups: int) -> Counts:
    """Of the experts of every token.

    Args:
        chosen_TK: [T, K] integers, -1 where a token has no more.
        experts, groups: of the layer.
    """
    routed_TE = np.zeros((len(chosen_TK), experts + 1), bool)
    # Those that are none go to a column of their own.
    np.put_along_axis(routed_TE, np.where(chosen_TK < 0, experts, chosen_TK), True, axis=1)
    units = groups or experts
    by_unit_TUM = routed_TE[:, :experts].reshape(len(chosen_TK), units, experts // units)
    met_TU = by_unit_TUM.any(2)
    # fp32 has integers to 2^24.
    together = np.zeros((met_TU.shape[1],) * 2, np.int64)
    for piece in np.array_split(met_TU, 1 + len(met_TU) // 2**22):
        of_piece = piece.astype(np.float32)
        together += (of_piece.T @ of_piece).astype(np.int64)
    degrees = np.bincount(met_TU.sum(1), minlength=2).astype(float)
    return Counts(together, by_unit_TUM.sum((0, 2)), degrees, met_TU)
