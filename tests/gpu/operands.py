"""Random operands of the kernels, at the shapes of GroveMoE-33B and at odd ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from grove_megatron.functional.dispatch_plan import pack_probs
from grove_megatron.functional.expand_plan import ExpandPlan, plan_expand
from grove_megatron.functional.groups import group_map


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Widths, and a routing of tokens to experts.

    Attributes:
        routing: "any" experts, "few" of them, "one" for all tokens, or "none".
    """

    tokens: int
    topk: int
    experts: int
    groups: int
    hidden: int
    width: int
    adjugate: int
    routing: str = "any"

    def plan(self, device: str = "cuda") -> ExpandPlan:
        """Where the routed pairs lie, as the layer plans them."""
        chosen = self._chosen()
        packed = pack_probs(torch.rand(chosen.shape), chosen)
        per_group = group_map(chosen, self.groups).sum(0)
        return plan_expand(packed.to(device), chosen.sum(0), per_group)

    def _chosen(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        scores = torch.rand(self.tokens, self.experts, generator=generator)
        chosen = torch.zeros(scores.shape, dtype=torch.bool)
        if self.routing == "one":
            chosen[:, self.experts // 2] = True
        elif self.routing != "none":
            if self.routing == "few":
                # Whole groups and single experts of others stay without a row.
                scores[:, self.experts // 2 :] -= 1
                scores[:, : self.experts // 2 : 3] -= 1
            chosen.scatter_(1, scores.topk(self.topk).indices, True)
        return chosen


# hidden_size, experts, groups, widths and top-k of the released model.
GROVE_33B = Shape(tokens=2048, topk=8, experts=128, groups=64, hidden=2048, width=768, adjugate=128)
_TINY = {"tokens": 70, "topk": 3, "experts": 8, "hidden": 72, "width": 40, "adjugate": 24}
ODD = {
    "groups of one": Shape(groups=8, **_TINY),
    "groups of two": Shape(groups=4, **_TINY),
    "groups of four": Shape(groups=2, **_TINY),
    "one group": Shape(groups=1, **_TINY),
    "all experts": Shape(groups=4, **(_TINY | {"tokens": 21, "topk": 8})),
    "empty experts": Shape(groups=4, **(_TINY | {"topk": 2}), routing="few"),
    "all rows to one expert": Shape(groups=4, **_TINY, routing="one"),
    "one expert": Shape(groups=1, **(_TINY | {"experts": 1, "topk": 1})),
    "one row": Shape(groups=4, **(_TINY | {"tokens": 1, "topk": 1})),
    "rows without experts": Shape(groups=4, **_TINY, routing="none"),
    "no rows": Shape(groups=4, **(_TINY | {"tokens": 0})),
}


@dataclass(frozen=True, kw_only=True)
class Operands:
    """What the kernels of one forward and backward pass read, besides the plan.

    Attributes:
        rows [V, H], x [N, H]: received rows, and those of the pairs.
        h [N, 2F], a [N, F], and of the adjugates h_M [M, 2h], a_M [M, h].
        up [L, 2F, H], down [L, H, F], and of the adjugates up_G [G, 2h, H], down_G [G, H, h].
        weight [N]: of the pairs, in fp32 or wider.
    """

    rows: Tensor
    x: Tensor
    h: Tensor
    a: Tensor
    h_M: Tensor
    a_M: Tensor
    up: Tensor
    down: Tensor
    up_G: Tensor
    down_G: Tensor
    weight: Tensor

    def to_fp64(self, device: str = "cuda") -> "Operands":
        return Operands(**{n: t.to(device, torch.float64) for n, t in vars(self).items()})


def operands(shape: Shape, plan: ExpandPlan, dtype: torch.dtype, device: str = "cuda") -> Operands:
    """Numbers about as large as those of a trained layer: products have a spread of about 1."""
    generator = torch.Generator(device).manual_seed(2)

    def normal(*size: int, spread: float = 1.0) -> Tensor:
        return spread * torch.randn(size, generator=generator, device=device)

    def drawn(*size: int, spread: float = 1.0) -> Tensor:
        return normal(*size, spread=spread).to(dtype)

    pairs, owners = plan.segments.num_pairs, plan.segments.num_owner_pairs
    hidden, width, adjugate = shape.hidden, shape.width, shape.adjugate
    return Operands(
        rows=drawn(plan.num_rows, hidden),
        x=drawn(pairs, hidden),
        h=drawn(pairs, 2 * width, spread=3.0),
        a=drawn(pairs, width),
        h_M=drawn(owners, 2 * adjugate),
        a_M=drawn(owners, adjugate),
        up=drawn(shape.experts, 2 * width, hidden, spread=hidden**-0.5),
        down=drawn(shape.experts, hidden, width, spread=width**-0.5),
        up_G=drawn(shape.groups, 2 * adjugate, hidden, spread=hidden**-0.5),
        down_G=drawn(shape.groups, hidden, adjugate, spread=adjugate**-0.5),
        weight=normal(pairs).abs().to(torch.promote_types(dtype, torch.float32)),
    )
