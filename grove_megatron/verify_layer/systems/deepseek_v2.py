"""DeepSeek-V2: softmax over all experts times a factor, shared experts, losses per sequence.

deepseek-ai/DeepSeek-VL2@ef9f91e deepseek_vl2/models/modeling_deepseek.py; arXiv 2405.04434.
"""

from torch import Tensor

from ..layout import Take
from ..pieces import pre_softmax, router_flags, separate, shared, shared_flags, swiglu_flags
from ..settings import Settings
from ..system import Loss, System, aux, counted, seq_aux

NAMES = ("deepseek_v2",)


def system(settings: Settings) -> System:
    experts, hidden = settings.size("num_experts"), settings.size("hidden_size")
    width, shared_width = (
        settings.size(f"{kind}_intermediate_size") for kind in ("expert", "shared")
    )
    method = settings.of_variant.choice("topk_method", "greedy", "group_limited_greedy")
    normalised = settings.of_variant.choice("norm_topk_prob", False, True)
    factor, alpha = settings.number("routed_scaling_factor"), settings.number("aux_loss_alpha")

    def parameters(take: Take) -> dict[str, Tensor]:
        return {
            "router.weight": take("gate.weight", experts, hidden),
            **dict(separate(take, experts, width, hidden)),
            **dict(shared(take, "shared_experts", shared_width, hidden)),
        }

    limited, blocks = method == "group_limited_greedy", settings.size("n_group")
    chosen = settings.size("topk_group")
    limit = ["--moe-router-num-groups", str(blocks), "--moe-router-group-topk", str(chosen)]
    losses = {"seq_aux": seq_aux(alpha), "batch_aux": aux(alpha)}
    losses["device"] = Loss(
        "device_loss", 1.0, {"grove_device_loss_coeff": 1.0, "grove_loss_devices": blocks}
    )
    if limited:
        losses["comm"] = Loss("communication_loss", 1.0, {"grove_communication_loss_coeff": 1.0})
    return System(
        flags=[
            *(*router_flags(settings), *pre_softmax(normalised), *swiglu_flags(width)),
            *("--moe-router-topk-scaling-factor", str(factor), *shared_flags(shared_width)),
            *([*limit, "--grove-group-score", "max"] if limited else []),
        ],
        parameters=parameters,
        losses={name: counted(loss, "routed") for name, loss in losses.items()},
    )
