"""Qwen1.5-MoE and Qwen2-MoE: like OLMoE, beside a shared expert with a gate of its own.

transformers 4.46.3, models/qwen2_moe/modeling_qwen2_moe.py; arXiv 2407.10671.
"""

from torch import Tensor

from ..layout import Take
from ..pieces import (
    hf_losses,
    pre_softmax,
    router_flags,
    separate,
    shared,
    shared_flags,
    swiglu_flags,
)
from ..settings import Settings
from ..system import System

NAMES = ("qwen2_moe",)


def system(settings: Settings) -> System:
    experts, hidden = settings.size("num_experts"), settings.size("hidden_size")
    width = settings.size("expert_intermediate_size")
    shared_width = settings.size("shared_expert_intermediate_size")
    normalised = settings.choice("norm_topk_prob", False, True)

    def parameters(take: Take) -> dict[str, Tensor]:
        return {
            "router.weight": take("gate.weight", experts, hidden),
            **dict(separate(take, experts, width, hidden)),
            **dict(shared(take, "shared_expert", shared_width, hidden)),
            "shared_experts.gate_weight": take("shared_expert_gate.weight", 1, hidden),
        }

    return System(
        flags=[
            *(*router_flags(settings), *pre_softmax(normalised), *swiglu_flags(width)),
            *(*shared_flags(shared_width), "--moe-shared-expert-gate"),
        ],
        parameters=parameters,
        losses=hf_losses(settings),
    )
