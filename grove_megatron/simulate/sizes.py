"""The sizes of a simulated dispatch, and what is wrong with them."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ..checks.problem import Problem, Refusal
from ..checks.rules import Check
from ..functional.placement import Placement
from ..model.selection import chances

RECORD_BYTES = 8
"""Of a routed pair that travels with a row: a position and a weight in fp32."""
WEIGHT_BYTES = 4
"""Of a weight beside a row of Megatron's all-to-all, in fp32 (``--moe-router-dtype fp32``)."""
MAP_BYTES = 1
"""Of an expert in the routing map that Megatron's all-gather hands round."""

MOST_EXPERTS, MOST_RANKS, MOST_HIDDEN_SIZE = 2**16, 2**14, 2**20
MOST_CHOICES = 2**27
"""Of the tokens of a rank: they are held at once, in 8 bytes each."""
MOST_COUNTS = 2**22
"""Ranks of all micro batches: of each some hundred bytes are held."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """One MoE layer, the ranks it is on, and what comes to it. Fields are named as flags.

    Attributes:
        experts, groups: routed experts, and groups of them; 0: none.
        topk: experts of a token, local ones among them.
        ranks: expert-parallel ranks.
        gpus_per_node: of them on a node.
        tokens: of a rank in a micro batch, on average.
        row_bytes: of a token's hidden state.
        local_experts: columns of the router that send nothing.
        local_tau: tokens of a routed expert for each of a local one; see ``model/selection.py``.

    Raises:
        Refusal: all that is wrong with them.
    """

    experts: int
    topk: int
    ranks: int
    tokens: int
    row_bytes: int
    groups: int = 0
    gpus_per_node: int = 8
    local_experts: int = 0
    local_tau: float = 1.0

    def __post_init__(self) -> None:
        if found := [*problems_of(self)]:
            raise Refusal(found)

    @property
    def placement(self) -> Placement:
        """Which rank holds what."""
        return Placement(num_experts=self.experts, num_groups=self.groups, num_ranks=self.ranks)

    @property
    def units(self) -> int:
        """What stays together: groups, or experts where there are none."""
        return self.groups or self.experts

    @property
    def nodes(self) -> int:
        return max(1, self.ranks // self.gpus_per_node)

    @property
    def per_node(self) -> int:
        """Ranks on a node."""
        return self.ranks // self.nodes

    @property
    def two_hops(self) -> bool:
        """Would ``--grove-hierarchical-dispatch`` make two hops of one?"""
        return self.nodes > 1 and self.per_node > 1

    @property
    def routed(self) -> dict[int, float]:
        """Probability of every number of routed experts among a token's ``topk``."""
        return dict(chances(self.experts, self.local_experts, self.topk, self.local_tau))


def problems_of(sizes: Any) -> Iterator[Problem]:
    """What is wrong with them.

    Args:
        sizes: with the fields of :class:`Sizes`; None where one is not known.
    """
    check = Check(sizes)
    counts = ("experts", "topk", "ranks", "tokens", "gpus_per_node")
    below = {name: [*check.at_least(name, 1)] for name in counts}
    below["groups"] = [*check.at_least("groups", 0)]
    yield from (problem for of in below.values() for problem in of)
    # Of the others there is still something to say.
    sizes = SimpleNamespace(**{n: None if of else getattr(sizes, n) for n, of in below.items()})
    check = Check(sizes)
    yield from check.at_most("topk", "experts", "choose the experts of a token")
    fix = "choose a number of groups that divides it"
    yield from check.multiple("experts", "groups", fix)
    if sizes.groups:
        why = ", and a group stays on one rank"
        fix = "use a number of ranks that divides the groups"
        yield from check.multiple("groups", "ranks", fix, why=why)
    else:
        fix = "use a number of ranks that divides the experts"
        yield from check.multiple("experts", "ranks", fix)
    if sizes.ranks and sizes.gpus_per_node and sizes.ranks > sizes.gpus_per_node:
        why = ", and every node holds as many"
        fix = "use whole nodes"
        yield from check.multiple("ranks", "gpus_per_node", fix, why=why)


def limits(sizes: Any) -> Iterator[Problem]:
    """Why that is more than is counted here.

    Args:
        sizes: with the fields of :class:`Sizes`, and ``hidden_size`` and ``steps``; None where one
            is not known.
    """
    check = Check(sizes)
    fix = "nothing larger is counted here"
    yield from check.at_most("experts", MOST_EXPERTS, fix)
    yield from check.at_most("ranks", MOST_RANKS, fix)
    yield from check.at_most("hidden_size", MOST_HIDDEN_SIZE, fix)
    tokens, topk = sizes.tokens or 0, sizes.topk or 1
    steps, ranks = sizes.steps or 0, sizes.ranks or 1
    yield from check.those(
        {
            f"{{tokens}} of a rank have with {{topk}} more than {MOST_CHOICES} choices, which are "
            "held at once; use fewer tokens": topk > 0 and tokens * topk > MOST_CHOICES,
            f"{{steps}} of {{ranks}} are more than {MOST_COUNTS} counts of ranks, which are held "
            "at once; use fewer steps": ranks > 0 and steps * ranks > MOST_COUNTS,
        }
    )
