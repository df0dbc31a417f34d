"""How many sets of units (ranks, or nodes) a token meets: the rows that are sent for it.

Counted where every token is known. Of sums over tokens only the first two moments of how many of a
set's units a token meets are known, and two distributions with those moments stand for it. In one
(Polya's, which is hypergeometric for uniform routing) tokens lean to a set more or less, by
degrees, as they do to a set that was not chosen for them. In the other a token belongs to a set or
does not. Routings tried so far lie between them, to some hundredths where a set is nearly all of
what a token can meet (tests/unit/placing/test_rows.py).

Shape suffixes as in counts.py.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from .counts import Array, Counts


@dataclass(frozen=True)
class Rows:
    """Sets that an average token meets.

    Attributes:
        even: by degrees, which is right to some thousandths where sets were not chosen by routing.
        low, high: between which it lies; where it was counted all are the same.
        deviation: standard deviation of a token's, from above. A little more the fewer tokens there
            are: all alike are no proof that the next one is.
    """

    even: float
    low: float
    high: float
    deviation: float


def rows(counts: Counts, set_U: Array, sets: int) -> Rows:
    """What a partition into equal sets makes of some tokens.

    Args:
        counts: at least one token.
        set_U: [U] the set of every unit.
        sets: how many there are.
    """
    in_set_US = set_U[:, None] == np.arange(sets)
    unseen = (sets - 1) / sqrt(counts.tokens)
    if counts.met is not None:
        # Products in fp32, of 0 and 1, are whole numbers.
        units_TS = counts.met.astype(np.float32) @ in_set_US.astype(np.float32)
        each_T = (units_TS > 0).sum(1)
        mean = float(each_T.mean())
        return Rows(mean, mean, mean, float(each_T.std()) + unseen)
    even_S, either_S = _by_degrees(*_known(counts, in_set_US)), _all_or_little(counts, in_set_US)
    # Sets share the units of a token, so one more here is mostly one less there.
    deviation = float(np.sqrt((even_S * (1 - even_S)).sum()))
    even, either = float(even_S.sum()), float(either_S.sum())
    return Rows(even, min(even, either), max(even, either), deviation + unseen)


def shares(counts: Counts, in_set_US: Array) -> Array:
    """[S] the share of tokens that meet a set; where it is not counted, the mean of both.

    Args:
        counts: at least one token.
        in_set_US: [U, S] bool, sets of one size, which need not be a partition.
    """
    if counts.met is None:
        even_S = _by_degrees(*_known(counts, in_set_US))
        return (even_S + _all_or_little(counts, in_set_US)) / 2
    # Tokens that meet the same units are one.
    packed = np.packbits(counts.met, axis=1)
    _, place, number = np.unique(packed, axis=0, return_index=True, return_counts=True)
    alike_NU = counts.met[place].astype(np.float32)
    pieces = np.array_split(in_set_US, 1 + in_set_US.shape[1] * len(place) // 2**24, axis=1)
    tokens = [number @ (alike_NU @ piece.astype(np.float32) > 0) for piece in pieces]
    return np.concatenate(tokens) / counts.tokens


def _known(counts: Counts, in_set_US: Array) -> tuple[Array, Array, int]:
    """[S] units of a set that a token meets on average, pairs of them, and the most of them."""
    inside = in_set_US.astype(float)
    units_S = counts.together.diagonal() / counts.tokens @ inside
    pairs_S = (inside * (counts.pairs @ inside)).sum(0) / 2
    most = min(int(in_set_US[:, 0].sum()), len(counts.degrees) - 1)
    return units_S, pairs_S, max(1, most)


def _by_degrees(units_S: Array, pairs_S: Array, most: int) -> Array:
    """Polya's distribution of ``most`` draws with that mean and variance."""
    p = np.clip(units_S / most, 0, 1)
    q = 1 - p
    binomial = most * p * q
    variance = 2 * pairs_S + units_S - units_S**2
    spread = np.ones_like(p)
    np.divide(variance, binomial, out=spread, where=binomial > 1e-12)
    spread = np.clip(spread, 0, most)
    missed = q.copy()
    for draw in range(1, most):
        # (q + draw * c) / (1 + draw * c), where c = (spread - 1) / (most - spread).
        below = most - spread + draw * (spread - 1)
        above = np.maximum(0, q * (most - spread) + draw * (spread - 1))
        missed *= np.where(below > 1e-12, above / np.where(below > 1e-12, below, 1), 1)
    return np.asarray(1 - missed)


def _all_or_little(counts: Counts, in_set_US: Array) -> Array:
    """A share of tokens, as large as the set's share of all units met, leans to the set."""
    units_S, pairs_S, _ = _known(counts, in_set_US)
    share_D = counts.degrees / counts.tokens
    degree_D = np.arange(len(share_D))
    mean = float(degree_D @ share_D)
    if mean == 0:
        return np.zeros_like(units_S)
    home_S = np.clip(units_S / mean, 0, 1 - 1e-9)
    draws_D = degree_D * (degree_D - 1) / 2 @ share_D
    none = 1 / len(counts.load)

    def leaning(a_S: Array) -> tuple[Array, Array]:
        """Chances of a draw to be of the set: of tokens that lean to it, and of the others."""
        return a_S, home_S * (1 - a_S) / (1 - home_S)

    def pairs_of(a_S: Array) -> Array:
        """Pairs of a set's units, drawn without putting back."""
        at, off = (p * np.maximum(0, p - none) / max(1 - none, 1e-9) for p in leaning(a_S))
        return draws_D * (home_S * at + (1 - home_S) * off)

    least, most = home_S.copy(), np.ones_like(home_S)
    for _ in range(40):
        middle = (least + most) / 2
        is_below = pairs_of(middle) < pairs_S
        least, most = np.where(is_below, middle, least), np.where(is_below, most, middle)
    missed_S = np.zeros_like(home_S)
    for weight_S, p_S in zip((home_S, 1 - home_S), leaning(least), strict=True):
        missed_S += weight_S * (_missed(p_S, none, len(share_D)) @ share_D)
    return np.asarray(1 - missed_S)


def _missed(p_S: Array, none: float, degrees: int) -> Array:
    """[S, D] chance that none of 0, 1, ... units drawn without putting back is of the set."""
    drawn = np.arange(degrees - 1) * none
    left = np.maximum(0, 1 - p_S[:, None] - drawn) / np.maximum(1 - drawn, 1e-9)
    return np.concatenate([np.ones((len(p_S), 1)), np.cumprod(left, axis=1)], axis=1)
