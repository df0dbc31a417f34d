"""Skywork-MoE: softmax over the selected of standardised logits, from a gate with a bias.

arXiv 2406.06563, Eq. 1 and 6; there is no released code. Variant unbiased_std divides by N - 1.
"""

from torch import Tensor

from ..layout import Take
from ..pieces import hf_losses, router_flags, separate, swiglu_flags
from ..settings import Settings
from ..system import ROUTING, System

NAMES = ("skywork", "skywork-moe gating logit normalisation")


def system(settings: Settings) -> System:
    experts, hidden = settings.size("num_experts"), settings.size("hidden_size")
    width = settings.size("expert_intermediate_size")
    settings.choice("gate_bias", True)
    settings.number("lambda_n")

    def parameters(take: Take) -> dict[str, Tensor]:
        return {
            "router.weight": take("gate.weight", experts, hidden),
            "router.bias": take("gate.bias", experts),
            **dict(separate(take, experts, width, hidden)),
        }

    losses = hf_losses(settings)
    del losses["hf_aux"]
    return System(
        flags=[*router_flags(settings), *swiglu_flags(width)],
        parameters=parameters,
        losses=losses,
        extras=ROUTING | {"norm_logits"},
        waits_for="a gate with a bias, and a normalisation of its logits",
    )
