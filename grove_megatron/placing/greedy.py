"""Balance of load alone: heaviest first, to the lightest rank that has room (EPLB's packing)."""

import numpy as np

from .counts import Array


def balanced(load_U: Array, ranks: int) -> Array:
    """The rank of every unit, [U]; every rank gets as many.

    Args:
        load_U: of every unit.
        ranks: divides their number.
    """
    room = len(load_U) // ranks
    rank_U = np.zeros(len(load_U), np.int64)
    taken, carried = np.zeros(ranks, np.int64), np.zeros(ranks)
    for unit in np.argsort(-load_U, kind="stable"):
        rank = int(np.where(taken < room, carried, np.inf).argmin())
        rank_U[unit] = rank
        taken[rank] += 1
        carried[rank] += load_U[unit]
    return rank_U


def rank_loads(load_U: Array, rank_U: Array, ranks: int) -> Array:
    """[ranks] the load of each."""
    return np.bincount(rank_U, weights=load_U, minlength=ranks)
