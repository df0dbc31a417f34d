"""Which pairs the losses over experts count as load."""

from typing import Any

import torch
from torch import Tensor

from ...checks.problem import Problem
from ...checks.rules import Check
from ..part import Part, Routed


class OfScores:
    """The top-k of the distribution."""

    def __init__(self, topk: int) -> None:
        self.per_token = topk

    def __call__(self, distribution_TE: Tensor, routed: Routed) -> Tensor:
        index_TK = distribution_TE.topk(self.per_token, dim=1).indices
        return torch.zeros_like(distribution_TE, dtype=torch.bool).scatter(1, index_TK, True)


class OfRouted:
    """The selected, before any are dropped."""

    def __init__(self, topk: int) -> None:
        self.per_token = topk

    def __call__(self, distribution_TE: Tensor, routed: Routed) -> Tensor:
        return routed.selected_TE


class OfFirst(OfScores):
    """The most probable alone."""

    def __init__(self, topk: int) -> None:
        super().__init__(1)


class Reference:
    """Token by token."""

    def __init__(self, kind: str, topk: int) -> None:
        self.kind, self.per_token = kind, 1 if kind == "first" else topk

    def __call__(self, distribution_TE: Tensor, routed: Routed) -> Tensor:
        counted_TE = torch.zeros_like(routed.selected_TE)
        for t, scores in enumerate(distribution_TE.tolist()):
            if self.kind == "routed":
                counted_TE[t, routed.choices_TK[t]] = True
            else:
                order = sorted(range(len(scores)), key=lambda i: -scores[i])
                counted_TE[t, order[: self.per_token]] = True
        return counted_TE


def rules(settings: Any) -> list[Problem]:
    kinds, given = settings.moe_router_load_balancing_type, settings.grove_aux_loss_counts
    check = Check(settings, moe_router_load_balancing_type="global_aux_loss")
    broken = {
        "{grove_aux_loss_counts} is not summed over a global batch by "
        "{moe_router_load_balancing_type}, which counts all of a token's experts; use aux_loss or "
        "seq_aux_loss": given == "first" and "global_aux_loss" in kinds,
        "{grove_aux_loss_counts} is of losses, and there is none; give "
        "--moe-router-load-balancing-type aux_loss, or remove it": (
            given != "scores" and not _is_counted(settings)
        ),
    }
    return list(check.those(broken))


def _is_counted(settings: Any) -> bool:
    """Does any loss ask for loads?"""
    # Which imports this file to find its parts.
    from ..registry import active

    kinds = settings.moe_router_load_balancing_type
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return {*kinds} != {"none"} or bool(active(settings, "loss"))


def _part(
    name: str,
    help: str,
    kind: type[OfScores] | type[OfRouted],
    source: str,
    *,
    formula: str,
    when: str,
) -> Part:
    return Part(
        slot="counts",
        name=name,
        help=help,
        source=source,
        formula=formula,
        when=when,
        is_on=lambda s: s.grove_aux_loss_counts == name,
        build=lambda config: kind(config.moe_router_topk),
        reference=lambda config: Reference(name, config.moe_router_topk),
        rules=rules,
        tried=f"--grove-aux-loss-counts {name} --moe-router-load-balancing-type aux_loss "
        "--moe-aux-loss-coeff 0.1",
    )


PARTS = (
    _part(
        "scores",
        "the tokens of whose scores it is among the best, without bias, limits or drops",
        OfScores,
        "megatron-core 0.19.2 moe_utils.py:877; arXiv 2412.19437, Eq. 18",
        formula="counted[t, i] = 1 for the K largest of p[t, i], the scoring's probabilities",
        when="Unless a model to be reproduced counts otherwise: the loss pulls on what it "
        "counts. With an expert bias or limits by group, what it counts is not where tokens "
        "go.",
    ),
    _part(
        "routed",
        "the tokens that selected it, as DeepSeek-V2",
        OfRouted,
        "arXiv 2405.04434, section 2.1.3; DeepSeek-VL2@ef9f91e MoEGate",
        formula="counted[t, i] = 1 for the selected e_TK, before any is dropped",
        when="With limits by group, to balance where tokens go, as DeepSeek-V2 does. Beside an "
        "expert bias both then correct the same load.",
    ),
    _part(
        "first",
        "the tokens whose best it is, as GShard and ST-MoE",
        OfFirst,
        "arXiv 2006.16668, Algorithm 1; lucidrains/st-moe-pytorch@d94e65d",
        formula="counted[t, i] = 1 for the largest of p[t, i]",
        when="To train as GShard and ST-MoE did, with two experts a token. Second choices are "
        "not balanced, and a loss over a global batch does not go with it.",
    ),
)
