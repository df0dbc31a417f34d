"""What a layer has to compute and to keep, counted from its shape and its routing."""

from dataclasses import dataclass

from .shape import Shape

BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Work:
    """One forward pass of this rank's tokens, as the routing happened to be.

    Attributes:
        tokens: T.
        pairs: (token, expert) pairs.
        adjugate_pairs: distinct (token, group) pairs.
    """

    tokens: int
    pairs: int
    adjugate_pairs: int

    def flops(self, shape: Shape, variant: str) -> float:
        """Of the matrix products of router, experts and adjugates, forward and backward.

        A product costs in the backward pass twice what it costs forward.
        """
        evaluations = {"naive": self.pairs, "grove": self.adjugate_pairs}.get(variant, 0)
        router = 3 * 2.0 * self.tokens * shape.hidden * shape.experts
        return router + self.expert_flops(shape, evaluations)

    def expert_flops(self, shape: Shape, evaluations: int) -> float:
        """The same without the router, for so many ``evaluations`` of adjugates.

        An FFN is three matrices, and two operations per entry of one.
        """
        experts = self.pairs * 3 * shape.hidden * shape.expert_width
        adjugates = evaluations * 3 * shape.hidden * shape.adjugate_width
        return 3 * 2.0 * (experts + adjugates)

    def adjugate_bytes(self, shape: Shape, ranks: int) -> int:
        """What adjugates cannot do without: weights, their gradients, and saved activations.

        Of every (token, group) pair what the backward pass needs: the output of fc1, two widths,
        and the input of fc2, one. Neither copies of inputs nor gradients of activations count.
        """
        weights = shape.groups // ranks * 3 * shape.hidden * shape.adjugate_width
        activations = self.adjugate_pairs * 3 * shape.adjugate_width
        return BYTES[shape.dtype] * (2 * weights + activations)
