"""How many of a token's experts have an FFN, where it may select experts that have none."""

from collections.abc import Mapping
from functools import cache
from math import comb
from types import MappingProxyType

from .architecture import Model

_HALVINGS = 200


def with_ffn(model: Model) -> Mapping[int, float]:
    """Probability of every number of experts with an FFN among a token's ``topk``."""
    return chances(model.num_experts, model.local_experts, model.topk, model.local_tau)


@cache
def chances(experts: int, local: int, topk: int, tau: float) -> Mapping[int, float]:
    """The same of N ``experts`` with an FFN and C ``local`` ones without.

    A token selects uniformly, or with ``tau`` so that the former get tau N / (tau N + C) of all
    pairs, where the balance loss of MoE++ (arXiv 2410.07348) is stationary: Fisher's noncentral
    hypergeometric distribution with that mean.
    """
    if not local:
        return MappingProxyType({topk: 1.0})
    ways = {
        n: comb(experts, n) * comb(local, topk - n)
        for n in range(max(0, topk - local), min(topk, experts) + 1)
    }
    if tau == 1:
        return MappingProxyType(_tilted(ways, 1.0))
    share = tau * experts / (tau * experts + local)
    wanted = min(max(share * topk, min(ways)), max(ways))
    low, high = 1e-9, 1e9
    for _ in range(_HALVINGS):
        odds = (low * high) ** 0.5
        if _mean(_tilted(ways, odds)) < wanted:
            low = odds
        else:
            high = odds
    return MappingProxyType(_tilted(ways, (low * high) ** 0.5))


def ffn_per_token(model: Model) -> float:
    """Experts with an FFN that a token has on average."""
    return _mean(with_ffn(model))


def _mean(chances: Mapping[int, float]) -> float:
    return sum(n * chance for n, chance in chances.items())


def ffn_range(model: Model) -> tuple[int, int]:
    """The fewest and the most experts with an FFN that a token can have."""
    return max(0, model.topk - model.local_experts), min(model.topk, model.num_experts)


def _tilted(ways: Mapping[int, int], odds: float) -> dict[int, float]:
    weights = {n: count * odds ** (n - min(ways)) for n, count in ways.items()}
    total = sum(weights.values())
    return {n: weight / total for n, weight in weights.items()}
