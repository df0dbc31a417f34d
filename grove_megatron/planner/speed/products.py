"""Seconds of matrix products and of attention on a GPU.

What was measured of a shape is taken as measured. Between the measured shapes the rate is a mean of
the nearest ones, by distance in the logarithms of their sizes. Where nothing was measured, a
product takes what its FLOPs take at the rate of deep products (less where sums are short), or what
its bytes take, whichever is longer (the roofline of Williams et al., CACM 2009).
"""

from dataclasses import dataclass
from functools import cache
from math import dist, log2

from .cluster import Machine, Timed

_NEAREST = 3
# Distance in powers of two, over the four sizes, beyond which a measurement says nothing.
_FAR = 2.0
# What else a tile takes, in terms of its sum.
_BEGUN = 256
# Forward, gradient of the input, gradient of the weight.
PASSES = ("forward", "input", "weight")


@dataclass(frozen=True, kw_only=True)
class Product:
    """A linear layer, or as many of the same size as a rank has experts, in one call.

    Attributes:
        rows: tokens, of one expert.
        inner, outer: widths of its input and output.
        groups: experts.
        element: bytes of an element of what goes in and comes out.
        gradient: bytes of an element of the buffer that gradients of weights are added to.
    """

    rows: float
    inner: int
    outer: int
    groups: int = 1
    element: int = 2
    gradient: int = 4

    @property
    def flops(self) -> float:
        """Of one pass."""
        return 2.0 * self.groups * self.rows * self.inner * self.outer

    def bytes(self, pass_: str) -> float:
        """Read and written by one pass."""
        tokens = self.rows * (self.inner + self.outer) * self.element
        weights = self.inner * self.outer
        # A gradient is added to what is there.
        weights *= 2 * self.gradient if pass_ == "weight" else self.element
        return self.groups * (tokens + weights)


@cache
def seconds(machine: Machine, product: Product, pass_: str, precision: str = "bf16") -> float:
    """Of one pass of a linear layer.

    Args:
        pass_: of PASSES.
        precision: ``bf16`` or ``fp8``.
    """
    if not product.flops:
        return 0.0
    by_bytes = product.bytes(pass_) / machine.bandwidth
    measured = _measured(machine, product, pass_)
    grouped = product.groups > 1
    law = measured or (machine.grouped if grouped else machine.achieved) * depth(
        _summed(product, pass_)
    )
    if precision == "fp8":
        law *= machine.faster
    return max(product.flops / law, by_bytes)


def passes(machine: Machine, product: Product, precision: str = "bf16") -> tuple[float, float]:
    """Seconds forward and backward."""
    forward, *backward = (seconds(machine, product, name, precision) for name in PASSES)
    return forward, sum(backward)


def depth(summed: float) -> float:
    """Share of a product's time in which numbers are summed up, and tiles not begun and written.

    Args:
        summed: products of two numbers that an element is the sum of.
    """
    return 1 / (1 + _BEGUN / summed)


def _summed(product: Product, pass_: str) -> float:
    return {"forward": product.inner, "input": product.outer, "weight": product.rows}[pass_]


def _measured(machine: Machine, product: Product, pass_: str) -> float | None:
    """FLOPs a second near this shape, or None."""
    grouped = product.groups > 1
    found = [
        (_distance(product, one), one.flops) for one in machine.shapes.get((pass_, grouped), ())
    ]
    return _between([pair for pair in found if pair[0] <= _FAR])


def _between(found: list[tuple[float, float]]) -> float | None:
    """Of distances and rates, the mean rate of the nearest, the nearer the more; None of none."""
    near = sorted(found)[:_NEAREST]
    if not near:
        return None
    if near[0][0] < 1e-9:
        return near[0][1]
    weights = [1 / far**2 for far, _ in near]
    return sum(w * rate for w, (_, rate) in zip(weights, near, strict=True)) / sum(weights)


def _distance(product: Product, one: Timed) -> float:
    ours = (product.groups, product.rows, product.inner, product.outer)
    theirs = (one.groups, one.rows, one.inner, one.outer)
    return dist([log2(size) for size in ours], [log2(size) for size in theirs])


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Causal attention of a microbatch on a rank.

    Attributes:
        sequences: of the microbatch.
        queries, keys: tokens of a sequence that this rank has queries of, and keys for.
        heads: query heads of the rank.
        width: of a key and of a value, added up.
    """

    sequences: int
    queries: float
    keys: float
    heads: float
    width: int

    def flops(self, *, backward: bool) -> float:
        """As if nothing were masked: two products forward, five backward."""
        one = self.sequences * self.queries * self.keys * self.heads * self.width
        return one * (5 if backward else 2)


@cache
def attention_seconds(machine: Machine, attention: Attention, *, backward: bool) -> float:
    """Of a fused causal attention."""
    flops = attention.flops(backward=backward)
    if not flops:
        return 0.0
    ours = [log2(size) for size in (attention.keys, attention.heads, attention.width)]
    found = []
    for one in machine.attentions:
        if one.backward == backward:
            theirs = [log2(size) for size in (one.length, one.heads, one.width)]
            found.append((dist(ours, theirs), one.flops))
    return flops / (_between(found) or machine.attention[backward])
