"""DBRX: softmax over the selected logits, SwiGLU experts, all rows of all experts in one matrix.

transformers 4.46.3, models/dbrx/modeling_dbrx.py.
"""

import torch
from torch import Tensor

from ...parts.part import Balance
from ..layout import Take
from ..pieces import gated, hf_losses, router_flags, swiglu_flags
from ..settings import Settings
from ..system import Loss, System

NAMES = ("dbrx",)


def system(settings: Settings) -> System:
    experts, hidden = settings.size("num_experts"), settings.size("hidden_size")
    width = settings.size("expert_intermediate_size")
    # The norm that weights are divided by; that of 1 makes them the softmax over the selected.
    settings.choice("moe_normalize_expert_weights", 1)

    def parameters(take: Take) -> dict[str, Tensor]:
        found = {"router.weight": take("router.layer.weight", experts, hidden)}
        gate, up, down = (
            take(f"experts.mlp.{name}", experts * width, hidden).chunk(experts)
            for name in ("w1", "v1", "w2")
        )
        for e in range(experts):
            # The last is not transposed: rows are multiplied from the right.
            found |= gated(gate[e], up[e], down[e].T, e)
        return found

    twice = SoftmaxOfSoftmax()
    return System(
        flags=[*router_flags(settings), *swiglu_flags(width)],
        parameters=parameters,
        losses=hf_losses(settings) | {"hf_aux": Loss(twice.name, twice.coefficient, own=twice)},
    )


class SoftmaxOfSoftmax:
    """The load balancing loss of transformers' DBRX (modeling_dbrx.py:606,721 @ 4.46.3).

    It takes the softmax of what is a softmax already. DBRX was trained with MegaBlocks, which does
    not, so that this is no part of the router: E * sum_i (tokens that chose i / T) * mean P_i.
    """

    name, coefficient = "softmax_of_softmax", 1.0

    def __call__(self, balance: Balance) -> Tensor:
        probs_TE = balance.seen.without_padding(torch.softmax(balance.distribution_TE, dim=-1))
        counts_E, tokens = balance.totals(balance.counted_TE.sum(0))
        return probs_TE.shape[1] * (counts_E / tokens * probs_TE.sum(0) / tokens).sum()
