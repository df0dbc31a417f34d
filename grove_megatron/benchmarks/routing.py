"""Tokens whose experts are drawn uniformly at random."""

import torch
from torch import Tensor


def uniform_routing(
    tokens: int, experts: int, topk: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Weights [T, E] fp32, 0 where unrouted, and the routing map [T, E] bool; on the CPU."""
    scores = torch.rand(tokens, experts, generator=generator)
    chosen = scores.topk(topk, dim=1)
    probs = torch.zeros_like(scores).scatter(1, chosen.indices, chosen.values.softmax(1))
    routing_map = torch.zeros_like(scores, dtype=torch.bool).scatter(1, chosen.indices, True)
    return probs, routing_map
