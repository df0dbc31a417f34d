"""Distinct experts for many tokens at once, drawn by weight, or so that loads are given.

Shape suffixes: T tokens, K experts of a token, E experts.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..report.trace import NONE

LEAST_WEIGHT = 2.0**-960
"""Of an expert that can be chosen: an exponential time over a smaller one is no fp64 number."""

_PIECE = 2**22


def routing_map(chosen_TK: Tensor, experts: int) -> Tensor:
    """[T, E] bool of lists of experts, in which NONE is none."""
    # One more column, for that.
    wide = torch.zeros(len(chosen_TK), experts + 1, dtype=torch.bool)
    wide.scatter_(1, chosen_TK.where(chosen_TK != NONE, experts), True)
    return wide[:, :experts].contiguous()


def in_pieces(tokens: int, width: int, draw: Callable[[int], Tensor]) -> Tensor:
    """[T, K] of a number of tokens at a time, so that memory has a bound.

    Args:
        tokens: T.
        width: entries that a token takes while it is drawn.
        draw: [tokens, K] of so many tokens.
    """
    most = max(1, _PIECE // width)
    counts = [most] * (tokens // most)
    if tokens % most or not tokens:
        counts.append(tokens % most)
    return torch.cat([draw(count) for count in counts])


def choose(weights_E: Tensor, tokens: int, topk: int, generator: torch.Generator) -> Tensor:
    """[T, K] int64: one expert after the other by weight, each at most once for a token.

    Draws with repetition and keeps the first K different ones, which is the same; the few tokens
    that have too few among those go on in a race of exponential times.

    Args:
        weights_E: [E] fp64, 0 or from LEAST_WEIGHT up; at least K of them above 0.
        tokens, topk: T, K.
        generator: of the CPU.
    """
    # Every one of 2 K draws is held against every other.
    width = 4 * topk * topk
    return in_pieces(tokens, width, lambda some: _choose(weights_E, some, topk, generator))


def _choose(weights_E: Tensor, tokens: int, topk: int, generator: torch.Generator) -> Tensor:
    cdf_E = weights_E.cumsum(0) / weights_E.sum()
    draws = torch.rand(tokens, 2 * topk, dtype=torch.float64, generator=generator)
    # Of 1 there is none: the last expert with a weight is the last that is found.
    found = torch.searchsorted(cdf_E, draws, right=True).clamp_(max=weights_E.numel() - 1)
    repeats = (found[:, :, None] == found[:, None, :]).tril(-1).any(-1)
    place = (~repeats).cumsum(1) - 1
    # Repetitions, and what comes after the K-th, fall into one more column.
    place = place.masked_fill(repeats, topk).clamp_(max=topk)
    chosen = found.new_full((tokens, topk + 1), NONE).scatter_(1, place, found)[:, :topk]
    short = torch.nonzero(chosen[:, -1] == NONE)[:, 0]
    for piece in short.split(max(1, _PIECE // weights_E.numel())):
        chosen[piece] = _race(weights_E, chosen[piece], generator)
    return chosen


def _race(weights_E: Tensor, chosen_TK: Tensor, generator: torch.Generator) -> Tensor:
    """Fill the lists up: the next is the first of exponential times with the weights as rates."""
    tokens, topk = chosen_TK.shape
    times = torch.empty(tokens, weights_E.numel(), dtype=torch.float64)
    times.exponential_(generator=generator).div_(weights_E)
    taken_TE = routing_map(chosen_TK, weights_E.numel())
    more = times.masked_fill_(taken_TE, torch.inf).topk(topk, largest=False).indices
    # The k-th place is filled by the (k - already chosen)-th of them.
    have = (chosen_TK != NONE).sum(1, keepdim=True)
    place = torch.arange(topk) - have
    return chosen_TK.where(chosen_TK != NONE, more.gather(1, place.clamp(min=0)))


def with_loads(loads_E: Tensor, tokens: int, topk: int, generator: torch.Generator) -> Tensor:
    """[T, K] int64: every expert for exactly its share of tokens, on average.

    Systematic sampling with a new random order of the experts for every token: of equal loads it
    makes a uniform choice. What is not integer in the sum is a number of experts that varies.

    Args:
        loads_E: [E] fp64 between 0 and 1: share of the tokens; at most K together.
        tokens, topk: T, K.
        generator: of the CPU.
    """
    width = loads_E.numel()
    return in_pieces(tokens, width, lambda some: _with_loads(loads_E, some, topk, generator))


def _with_loads(loads_E: Tensor, tokens: int, topk: int, generator: torch.Generator) -> Tensor:
    order_TE = torch.rand(tokens, loads_E.numel(), generator=generator).argsort(1)
    end_TE = loads_E[order_TE].cumsum(1)
    end_TE += torch.rand(tokens, 1, dtype=torch.float64, generator=generator)
    # Where a whole number is passed.
    begin_TE = end_TE.roll(1, 1)
    begin_TE[:, 0] = 0
    passed_TE = end_TE.floor() > begin_TE.floor()
    place = passed_TE.cumsum(1) - 1
    place = place.masked_fill(~passed_TE, topk).clamp_(max=topk)
    chosen = order_TE.new_full((tokens, topk + 1), NONE)
    return chosen.scatter_(1, place, order_TE)[:, :topk]


def from_homes(
    home_TM: Tensor,
    inside_T: Tensor,
    experts: int,
    topk: int,
    generator: torch.Generator,
) -> Tensor:
    """[T, K] int64: some experts of a token uniformly from its home, the others from elsewhere.

    Args:
        home_TM: [T, M] int64, the experts at home.
        inside_T: [T] int64, how many are from there: up to K and M, and so many that there are
            enough elsewhere.
        experts, topk: E, K.
        generator: of the CPU.
    """
    tokens, size = home_TM.shape
    shuffled = torch.rand(tokens, size, generator=generator).argsort(1)
    at_home = home_TM.gather(1, shuffled)
    keys = torch.rand(tokens, experts, generator=generator).scatter_(1, home_TM, 2.0)
    elsewhere = keys.topk(topk, largest=False).indices
    # In no order: what is left out of a list for local experts is from here and from there.
    place = torch.rand(tokens, topk, generator=generator).argsort(1)
    return torch.where(
        place < inside_T[:, None],
        at_home.gather(1, place.clamp(max=size - 1)),
        elsewhere.gather(1, (place - inside_T[:, None]).clamp(min=0)),
    )
