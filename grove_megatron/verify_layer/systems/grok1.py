"""Grok-1: weights are those of the softmax over all experts; gated GELU experts.

xai-org/grok-1@7050ed2 model.py:238-391, the formulas. Matrices are stored [in, out].
"""

from functools import partial

from torch import Tensor
from torch.nn import functional as F

from ..layout import Take
from ..pieces import gated, hf_losses, pre_softmax, router_flags
from ..settings import Settings
from ..system import System

NAMES = ("grok1", "Grok-1 MoE layer")


def system(settings: Settings) -> System:
    experts, hidden = settings.size("num_experts"), settings.size("hidden_size")
    width = settings.size("expert_intermediate_size")

    def parameters(take: Take) -> dict[str, Tensor]:
        found = {"router.weight": take("router.w", hidden, experts).T}
        gate = take("moe.linear.w", experts, hidden, width)
        up = take("moe.linear_v.w", experts, hidden, width)
        down = take("moe.linear_1.w", experts, width, hidden)
        for e in range(experts):
            found |= gated(gate[e].T, up[e].T, down[e].T, e)
        return found

    return System(
        flags=[
            *(*router_flags(settings), *pre_softmax(False)),
            *("--moe-ffn-hidden-size", str(width)),
        ],
        # jax.nn.gelu is the tanh form unless told otherwise.
        fields={
            "activation_func": partial(F.gelu, approximate="tanh"),
            "gated_linear_unit": True,
        },
        parameters=parameters,
        losses={"switch_aux": hf_losses(settings)["switch_aux"]},
    )
