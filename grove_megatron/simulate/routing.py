"""Routings: which experts every token of every rank chooses, drawn anew whenever they are asked.

A routing holds no tokens. Those of a rank come from the seed, the layer, the step and the rank
alone, so that a placement meets the same tokens as the order it replaces, whatever was drawn
before.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..checks.problem import Problem, Refusal
from ..report.trace import NONE
from .draw import LEAST_WEIGHT, choose, from_homes, in_pieces
from .sizes import Sizes

Draw = Callable[[int, int, int, torch.Generator], Tensor]
"""Of (step, rank, tokens, generator): [T, K] int64 routed experts, in the order of the choice."""


class Routing(Protocol):
    """What is simulated.

    Attributes:
        layers: names of the layers.
        steps: micro batches of each.
    """

    @property
    def layers(self) -> tuple[str, ...]: ...

    @property
    def steps(self) -> int: ...

    def experts(self, layer: str, step: int, rank: int) -> Tensor:
        """[T, K] int64: the experts of every token of a rank, ``NONE`` where there is none."""
        ...


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A routing that is drawn.

    Attributes:
        sizes: of the layer.
        seed: another one has other tokens.
        draw: makes the choice.
        layers, steps: see :class:`Routing`.
        tokens_of: tokens of a rank; None: as many on each.
    """

    sizes: Sizes
    seed: int
    draw: Draw
    layers: tuple[str, ...] = ("1",)
    steps: int = 1
    tokens_of: Callable[[int], int] | None = None

    def experts(self, layer: str, step: int, rank: int) -> Tensor:
        generator = generator_of(self.seed, layer, step, rank)
        tokens = self.sizes.tokens if self.tokens_of is None else self.tokens_of(rank)
        chosen_TK = self.draw(step, rank, tokens, generator)
        if not self.sizes.local_experts:
            return chosen_TK
        # Of the choice the first ones stay; local experts are in the places of the others.
        routed = self.sizes.routed
        shares = torch.tensor([*routed.values()], dtype=torch.float64)
        kept_T = torch.multinomial(shares, tokens, replacement=True, generator=generator)
        kept_T = torch.tensor([*routed])[kept_T]
        return chosen_TK.masked_fill(torch.arange(self.sizes.topk) >= kept_T[:, None], NONE)


def generator_of(*what: object) -> torch.Generator:
    """A generator for what is named, unlike that for anything else."""
    digest = hashlib.sha256("|".join(map(str, what)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def uniform(sizes: Sizes, seed: int) -> Drawn:
    """Every choice of K experts is as likely."""
    return Drawn(sizes=sizes, seed=seed, draw=by_weight(sizes, torch.ones(sizes.experts)))


def zipf(sizes: Sizes, seed: int, exponent: float) -> Drawn:
    """The n-th most popular expert has the weight 1 / n^exponent; which one it is, the seed says.

    Raises:
        Refusal: no such exponent, or one that leaves a token too few experts with a weight.
    """
    if problems := exponent_problems(exponent):
        raise Refusal(problems)
    rank_E = 1.0 + torch.randperm(sizes.experts, generator=generator_of(seed, "popularity"))
    weights_E = rank_E.double() ** -exponent
    weights_E = weights_E.masked_fill(weights_E < LEAST_WEIGHT, 0.0)
    if (left := int((weights_E > 0).sum())) < sizes.topk:
        text = (
            f"leaves fewer experts ({left}) a weight that fp64 can tell from 0 than --topk "
            f"({sizes.topk}); use a smaller one, 1 is usual"
        )
        raise Refusal([Problem("--routing zipf exponent", f"{exponent:g}", text)])
    return Drawn(sizes=sizes, seed=seed, draw=by_weight(sizes, weights_E))


def exponent_problems(exponent: float) -> list[Problem]:
    """What no layer could make of it."""
    if 0 <= exponent < torch.inf:
        return []
    text = "is not a number from 0 up; 0 is uniform, 1 is usual"
    return [Problem("--routing zipf exponent", f"{exponent:g}", text)]


def by_weight(sizes: Sizes, weights_E: Tensor) -> Draw:
    """Experts by weight, one after the other."""
    weights_E = weights_E.double()
    return lambda step, rank, tokens, generator: choose(weights_E, tokens, sizes.topk, generator)


def correlated(sizes: Sizes, seed: int, share: float, units: int | None = None) -> Drawn:
    """Tokens prefer a few units (groups, or experts) that stand beside one another.

    A token's home is one of the equal slices of ``units`` units, each as likely; every one of its
    experts is from there with the probability ``share``, as far as there are so many. Loads are
    equal.

    Raises:
        Refusal: no such share, or no such slices.
    """
    home = _home(sizes, share, units)
    return _from_slices(sizes, seed, share, home, torch.arange(sizes.units))


def planted(sizes: Sizes, seed: int, share: float, units: int | None = None) -> Drawn:
    """As :func:`correlated`, but the units of a slice are scattered over the ranks.

    :func:`planted_order` says how; a placement that brings them together sends what
    :func:`correlated` sends.

    Raises:
        Refusal: no such share, or no such slices.
    """
    home = _home(sizes, share, units)
    return _from_slices(sizes, seed, share, home, planted_order(sizes, seed))


def planted_order(sizes: Sizes, seed: int) -> Tensor:
    """[units] int64: the units in an order in which every home of :func:`planted` is one slice."""
    return torch.randperm(sizes.units, generator=generator_of(seed, "planted"))


def _from_slices(sizes: Sizes, seed: int, share: float, home: int, order: Tensor) -> Drawn:
    size = sizes.experts // sizes.units
    members = (order[:, None] * size + torch.arange(size)).reshape(-1, home * size)

    def some(tokens: int, generator: torch.Generator) -> Tensor:
        home_T = torch.randint(len(members), (tokens,), generator=generator)
        picks = torch.rand(tokens, sizes.topk, generator=generator) < share
        most, elsewhere = members.shape[1], sizes.experts - members.shape[1]
        inside_T = picks.sum(1).clamp(max=most, min=sizes.topk - elsewhere)
        return from_homes(members[home_T], inside_T, sizes.experts, sizes.topk, generator)

    return Drawn(
        sizes=sizes,
        seed=seed,
        draw=lambda step, rank, tokens, generator: in_pieces(
            tokens, 2 * sizes.experts, lambda piece: some(piece, generator)
        ),
    )


def share_problems(share: float) -> list[Problem]:
    """What no layer could make of it."""
    if 0 <= share <= 1:
        return []
    text = "is not between 0 and 1; use the share of a token's experts that are at its home"
    return [Problem("--routing share", f"{share:g}", text)]


def _home(sizes: Sizes, share: float, units: int | None) -> int:
    """Units of a home: by default the fewest that hold a token's experts and divide the units."""
    problems = share_problems(share)
    of = "--groups" if sizes.groups else "--experts"
    if units is not None and (units < 1 or sizes.units % units):
        text = f"does not divide {of} ({sizes.units}); use slices that do"
        problems.append(Problem("--routing units", units, text))
    if problems:
        raise Refusal(problems)
    if units is not None:
        return units
    fewest = -(-sizes.topk * sizes.units // sizes.experts)
    return next(n for n in range(fewest, sizes.units + 1) if sizes.units % n == 0)
