"""OLMoE: weights are those of the softmax over all experts; SwiGLU experts.

transformers 4.46.3, models/olmoe/modeling_olmoe.py; arXiv 2409.02060.
"""

from torch import Tensor

from ..layout import Take
from ..pieces import hf_losses, pre_softmax, router_flags, separate, swiglu_flags
from ..settings import Settings
from ..system import System

NAMES = ("olmoe",)


def system(settings: Settings) -> System:
    experts, hidden = settings.size("num_experts"), settings.size("hidden_size")
    width = settings.size("expert_intermediate_size")
    settings.choice("shared_expert_intermediate_size", None)
    normalised = settings.choice("norm_topk_prob", False, True)

    def parameters(take: Take) -> dict[str, Tensor]:
        return {
            "router.weight": take("gate.weight", experts, hidden),
            **dict(separate(take, experts, width, hidden)),
        }

    return System(
        flags=[*router_flags(settings), *pre_softmax(normalised), *swiglu_flags(width)],
        parameters=parameters,
        losses=hf_losses(settings),
    )
