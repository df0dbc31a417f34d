"""Tokens whose experts come together as often as was counted.

A token chooses one expert after the other; every choice makes the experts of each unit (a group, or
an expert) more or less likely, by a factor for the two units. Factors and weights are fitted on
drawn tokens until loads and pairs are those that were counted.

Shape suffixes: T tokens, K experts of a token, E experts, U units.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..report.trace import NONE
from .draw import in_pieces, routing_map
from .routing import Draw, generator_of

_ROUNDS = 24
_SAMPLE = 4096
_STEP = 0.5
_LEAST = 1e-4
"""A share of tokens that is as good as none: what was seen never is still drawn now and then."""


@dataclass(frozen=True)
class _Fit:
    """Logarithms: of the experts' weights [E], and of the units' factors [U, U], symmetric."""

    weights_E: Tensor
    factors_UU: Tensor


def fitted(loads_E: Tensor, together_UU: Tensor, topk: int, seed: int) -> Draw:
    """Draws with the loads and pairs of units that were counted, as far as a sample tells.

    Args:
        loads_E: [E] fp64, share of the tokens of every expert.
        together_UU: [U, U] fp64, share of the tokens that chose of both units; on the diagonal, of
            the one.
        topk: K, the most experts of a token.
        seed: of the sample.
    """
    mean = float(loads_E.sum())
    fit = _Fit(loads_E.clamp(min=_LEAST).log(), torch.zeros_like(together_UU))
    generator = generator_of(seed, "pairs")
    units = len(together_UU)
    for _ in range(_ROUNDS):
        chosen_TK = _draw(fit, _SAMPLE, topk, mean, generator)
        seen_E, seen_UU = shares(chosen_TK, loads_E.numel(), units)
        more_E = _log_ratio(loads_E, seen_E)
        more_UU = _log_ratio(together_UU, seen_UU)
        # All factors to other units together say how often one is chosen twice.
        more_UU.fill_diagonal_(0)
        fit = _Fit(fit.weights_E + _STEP * more_E, fit.factors_UU + _STEP * more_UU)
    width = loads_E.numel()
    return lambda step, rank, tokens, generator: in_pieces(
        tokens, width, lambda some: _draw(fit, some, topk, mean, generator)
    )


def shares(chosen_TK: Tensor, experts: int, units: int) -> tuple[Tensor, Tensor]:
    """[E] and [U, U] fp64: shares of the tokens as :func:`fitted` takes them."""
    tokens = len(chosen_TK)
    map_TE = routing_map(chosen_TK, experts).double()
    map_TU = map_TE.reshape(tokens, units, -1).amax(-1)
    return map_TE.mean(0), map_TU.T @ map_TU / tokens


def _log_ratio(wanted: Tensor, seen: Tensor) -> Tensor:
    return ((wanted + _LEAST) / (seen + _LEAST)).log()


def _draw(fit: _Fit, tokens: int, topk: int, mean: float, generator: torch.Generator) -> Tensor:
    experts, units = fit.weights_E.numel(), len(fit.factors_UU)
    size = experts // units
    scores_TE = fit.weights_E.float().repeat(tokens, 1)
    factors_UE = fit.factors_UU.float().repeat_interleave(size, 1)
    chosen = []
    for _ in range(topk):
        times = torch.empty_like(scores_TE).exponential_(generator=generator)
        next_T = (scores_TE - times.log_()).argmax(1)
        chosen.append(next_T)
        scores_TE += factors_UE[next_T // size]
        scores_TE.scatter_(1, next_T[:, None], -torch.inf)
    chosen_TK = torch.stack(chosen, 1)
    # A mean that is no whole number: some tokens have one fewer.
    fewer_T = torch.rand(tokens, generator=generator) < topk - mean
    chosen_TK[:, -1] = chosen_TK[:, -1].masked_fill(fewer_T, NONE)
    return chosen_TK
