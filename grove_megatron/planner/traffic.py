"""How many groups and ranks a token meets, expected under uniform routing.

A token selects k of n experts. A set of n / b contiguous experts (a group, or a rank's share) is
met if one of them is selected; b such sets hold all experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil, comb

from ..model.architecture import Model
from ..model.selection import ffn_per_token, with_ffn
from .inputs import Layout


@cache
def expected_distinct(experts: int, selected: int, sets: int) -> float:
    """Sets that k experts chosen uniformly without replacement meet: b (1 - C(n-m,k) / C(n,k)).

    Args:
        experts: n.
        selected: k.
        sets: b, divides n; m = n / b experts each.
    """
    missed = comb(experts - experts // sets, selected) / comb(experts, selected)
    return sets * (1 - missed)


def distinct_range(experts: int, selected: int, sets: int) -> tuple[int, int]:
    """The fewest and the most sets that k experts can meet."""
    return ceil(selected * sets / experts), min(selected, sets)


def groups_per_token(model: Model) -> float:
    """Adjugates that an average token needs in a layer; 0 without groups."""
    if not model.num_groups:
        return 0.0
    return _expected(model, model.num_groups)


def rows_per_token(model: Model, layout: Layout) -> float:
    """Rows a token is sent as, its own rank's included; 0 without experts.

    Our dispatch sends one to every rank it needs, Megatron's all-to-all one for each of its
    experts, and its all-gather one to every rank.
    """
    if not model.num_experts:
        return 0.0
    if layout.all_gather:
        return float(layout.expert)
    if layout.row_per_expert:
        return ffn_per_token(model)
    return _expected(model, layout.expert)


def nodes_per_token(model: Model, nodes: int) -> float:
    """Nodes that hold an expert of an average token, of so many; 0 without experts.

    So many rows the first hop of ``--grove-hierarchical-dispatch`` sends, the own node's included.
    """
    return _expected(model, nodes) if model.num_experts else 0.0


def expected_sets(experts: int, sets: int, selected: Mapping[int, float]) -> float:
    """As :func:`expected_distinct`, of tokens that differ in how many experts they select.

    Args:
        experts, sets: n and b.
        selected: the probability of every k.
    """
    return sum(chance * expected_distinct(experts, k, sets) for k, chance in selected.items())


def _expected(model: Model, sets: int) -> float:
    """Sets that the experts with an FFN of a token meet."""
    selected = with_ffn(model)
    if model.blocks and (model.blocks % sets == 0 or sets % model.blocks == 0):
        return sum(chance * _limited(model, k, sets) for k, chance in selected.items())
    # Where borders of blocks and sets cross, the limit is left out: more are counted than met.
    return expected_sets(model.num_experts, sets, selected)


@cache
def _limited_sets(experts: int, selected: int, sets: int, blocks: int, chosen: int) -> float:
    """Sets that k experts meet which are uniform in so many blocks, themselves chosen uniformly."""
    each = experts // blocks
    among = each * chosen
    if sets % blocks == 0:
        return expected_distinct(among, selected, sets // blocks * chosen)
    # A set is so many whole blocks, of which a token chose any number.
    size = blocks // sets
    missed = 0.0
    for here in range(max(0, chosen - blocks + size), min(size, chosen) + 1):
        chance = comb(size, here) * comb(blocks - size, chosen - here) / comb(blocks, chosen)
        missed += chance * comb(among - here * each, selected) / comb(among, selected)
    return sets * (1 - missed)


def _limited(model: Model, selected: int, sets: int) -> float:
    return _limited_sets(model.num_experts, selected, sets, model.blocks, model.blocks_chosen)


def busiest(model: Model, layout: Layout, imbalance: float) -> float:
    """Pairs of a row and an expert that the busiest rank gets, over the mean.

    Args:
        imbalance: asked for; no rank can have more than all tokens with as many experts as it
            holds, and one that holds all of them has the mean.
    """
    if layout.expert == 1 or not model.num_experts:
        return 1.0
    mean = ffn_per_token(model)
    most = layout.expert * min(model.topk, model.num_experts // layout.expert) / mean
    return min(imbalance, most)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows that a token is sent as, on average and where every rank's tokens are alike.

    Attributes:
        own: to the rank that it is on.
        near: to other ranks of its node.
        far: to other nodes.
    """

    own: float
    near: float
    far: float

    @property
    def total(self) -> float:
        return self.own + self.near + self.far


def remote_rows(model: Model, layout: Layout, inside: int) -> Rows:
    """Where the rows of a token go.

    Args:
        inside: expert-parallel ranks of a node; the last node may have fewer.
    """
    ranks = layout.expert
    inside = min(inside, ranks)
    each = rows_per_token(model, layout) / ranks
    near = each * (inside - 1)
    far = each * (ranks - inside)
    if layout.hierarchical and inside < ranks and not ranks % inside:
        # Once to every node, and from there to the ranks that need it: as many rows as before in
        # all nodes, but those on the way through arrive at a rank that may need them itself.
        nodes = ranks // inside
        far = nodes_per_token(model, nodes) * (nodes - 1) / nodes
        near = each * ranks * (inside - 1) / inside
    return Rows(own=each, near=near, far=far)
