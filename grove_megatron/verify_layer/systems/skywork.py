"""Skywork-MoE: softmax over the selected of standardised logits, from a gate with a bias.

arXiv 2406.06563, Eq. 1 and 6; there is no released code. Variant unbiased_std divides by N - 1.
"""

from torch import Tensor

from ..layout import Take
from ..pieces import router_flags, separate, swiglu_flags
from ..settings import Settings
from ..system import ROUTING, System, aux, z

NAMES = ("skywork", "skywork-moe gating logit normalisation")


def system(settings: Settings) -> System:
    experts, hidden = settings.size("num_experts"), settings.size("hidden_size")
    width = settings.size("expert_intermediate_size")
    settings.choice("gate_bias", True)
    spread = {"default": "population", "unbiased_std": "sample"}.get(settings.variant)
    if spread is None:
        settings.problems.append(f"--variant ({settings.variant}) has an unknown spread of logits")

    def parameters(take: Take) -> dict[str, Tensor]:
        return {
            "router.weight": take("gate.weight", experts, hidden),
            "router.logits_bias.bias": take("gate.bias", experts),
            **dict(separate(take, experts, width, hidden)),
        }

    return System(
        flags=[
            *(*router_flags(settings), *swiglu_flags(width), "--grove-logit-bias"),
            *("--grove-logit-norm", str(spread)),
            *("--grove-logit-norm-scale", str(settings.number("lambda_n"))),
        ],
        parameters=parameters,
        # Of the logits before they are normalised.
        losses={"switch_aux": aux(1.0), "z": z(1.0)},
        extras=ROUTING | {"norm_logits"},
    )
