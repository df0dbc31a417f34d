"""Imbalance as a unit of measure: the workloads W0 to W7, each apart in one thing.

They are the workloads of the token-imbalance benchmark that NVIDIA/Megatron-LM pull request 7488
proposes (September 2026, for its roadmap, issue 6757), made from its text and its definitions:

| | there and here |
| --- | --- |
| w0 | balanced: token after token takes the next K experts |
| w1 | hot experts: three of four tokens choose among the first quarter (K experts at least) |
| w3 | spread hot experts: three of four tokens choose among every other expert |
| w5 | dead experts: all choose among the second half |
| w6 | a hot spot that moves on by its width every three steps |
| w7 | a burst: of four steps the last, where every other token chooses among the first quarter |

Ours are two. Its ``W2_hot_rank`` is the block of W1 once more, so that the layout says which rank
is hot; w2 here makes the block as wide as one rank's experts (K at least). Its ``W4_source_ragged``
names uneven sources and draws uniformly; w4 here does that for ranks whose tokens go from half of
the average to one and a half, in order. Tokens are drawn by our generator, and w0 goes on from
rank to rank where theirs begins again: the distributions are the same, the tokens are not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .draw import choose
from .routing import Draw, Drawn, by_weight
from .sizes import Sizes

_MOVES_EVERY = 3


@dataclass(frozen=True)
class Workload:
    """One of them.

    Args:
        make: its draws.
        steps: after which it begins again.
        ragged: do the ranks have other numbers of tokens?
    """

    make: Callable[[Sizes], Draw]
    steps: Callable[[Sizes], int] = lambda sizes: 1
    ragged: bool = False


def workload(name: str, sizes: Sizes, seed: int) -> Drawn:
    """The routing of ``w0`` to ``w7``, with as many steps as it takes to begin again."""
    of = WORKLOADS[name]
    ramp: Callable[[int], int] | None = None
    if of.ragged and sizes.ranks > 1:
        # The mean is the tokens asked for, up to rounding.
        ramp = lambda rank: round(sizes.tokens * (0.5 + rank / (sizes.ranks - 1)))  # noqa: E731
    return Drawn(
        sizes=sizes,
        seed=seed,
        draw=of.make(sizes),
        steps=of.steps(sizes),
        tokens_of=ramp,
    )


def _width(sizes: Sizes) -> int:
    """Experts of a hot spot."""
    return max(sizes.topk, sizes.experts // 4)


def _among(sizes: Sizes, experts: Tensor) -> Tensor:
    """[E] fp64: 1 for those experts."""
    return torch.zeros(sizes.experts, dtype=torch.float64).index_fill_(0, experts, 1.0)


def _balanced(sizes: Sizes) -> Draw:
    def draw(step: int, rank: int, tokens: int, generator: torch.Generator) -> Tensor:
        token_T = rank * sizes.tokens + torch.arange(tokens)
        place_TK = token_T[:, None] * sizes.topk + torch.arange(sizes.topk)
        return place_TK % sizes.experts

    return draw


def _hot(sizes: Sizes, hot: Callable[[int], Tensor], cold_every: int = 4) -> Draw:
    """Of every ``cold_every`` tokens the first chooses among all, the others where it is hot."""
    everywhere_E = torch.ones(sizes.experts, dtype=torch.float64)

    def draw(step: int, rank: int, tokens: int, generator: torch.Generator) -> Tensor:
        chosen_TK = choose(_among(sizes, hot(step)), tokens, sizes.topk, generator)
        cold_T = torch.arange(tokens) % cold_every == 0
        chosen_TK[cold_T] = choose(everywhere_E, int(cold_T.sum()), sizes.topk, generator)
        return chosen_TK

    return draw


def _first(width: Callable[[Sizes], int]) -> Callable[[Sizes], Draw]:
    return lambda sizes: _hot(sizes, lambda step: torch.arange(width(sizes)))


def _spread(sizes: Sizes) -> Draw:
    every_other = torch.arange(0, sizes.experts, 2)
    enough = every_other if len(every_other) >= sizes.topk else torch.arange(sizes.experts)
    return _hot(sizes, lambda step: enough)


def _ragged(sizes: Sizes) -> Draw:
    return by_weight(sizes, torch.ones(sizes.experts))


def _dead(sizes: Sizes) -> Draw:
    first = min(sizes.experts // 2, sizes.experts - sizes.topk)
    return by_weight(sizes, _among(sizes, torch.arange(first, sizes.experts)))


def _moving(sizes: Sizes) -> Draw:
    spot = torch.arange(_width(sizes))
    return _hot(sizes, lambda step: (spot + step // _MOVES_EVERY * len(spot)) % sizes.experts)


def _burst(sizes: Sizes) -> Draw:
    quiet = by_weight(sizes, torch.ones(sizes.experts))
    burst = _hot(sizes, lambda step: torch.arange(_width(sizes)), cold_every=2)
    return lambda step, *rest: (burst if step % 4 == 3 else quiet)(step, *rest)


WORKLOADS = {
    "w0": Workload(_balanced),
    "w1": Workload(_first(_width)),
    "w2": Workload(_first(lambda s: max(s.topk, s.experts // s.ranks))),
    "w3": Workload(_spread),
    "w4": Workload(_ragged, ragged=True),
    "w5": Workload(_dead),
    "w6": Workload(_moving, steps=lambda s: _MOVES_EVERY * -(-s.experts // _width(s))),
    "w7": Workload(_burst, steps=lambda s: 4),
}
"""By name."""
