"""Qwen3-MoE: softmax over the selected logits, SwiGLU experts, stacked.

transformers 5.23.0, models/qwen3_moe/modeling_qwen3_moe.py; arXiv 2505.09388.
"""

from torch import Tensor

from ..layout import Take
from ..pieces import hf_losses, pre_softmax, router_flags, stacked, swiglu_flags
from ..settings import Settings
from ..system import System

NAMES = ("qwen3_moe",)


def system(settings: Settings) -> System:
    experts, hidden = settings.size("num_experts"), settings.size("hidden_size")
    width = settings.size("expert_intermediate_size")
    normalised = settings.choice("norm_topk_prob", True, False)

    def parameters(take: Take) -> dict[str, Tensor]:
        return {
            "router.weight": take("gate.weight", experts, hidden),
            **dict(stacked(take, experts, width, hidden)),
        }

    return System(
        flags=[*router_flags(settings), *pre_softmax(normalised), *swiglu_flags(width)],
        parameters=parameters,
        losses=hf_losses(settings),
    )
