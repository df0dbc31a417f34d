"""DeepSeek-V3: sigmoid scores, selected with a bias and a group limit; a shared expert.

transformers 5.23.0, models/deepseek_v3/modeling_deepseek_v3.py; arXiv 2412.19437, Eq. 12-20.
"""

from torch import Tensor

from ..layout import Take
from ..pieces import router_flags, shared, shared_flags, stacked, swiglu_flags
from ..settings import Settings
from ..system import ROUTING, System, seq_aux

NAMES = ("deepseek_v3",)
_BIAS = "e_score_correction_bias"


def system(settings: Settings) -> System:
    experts, hidden = settings.size("num_experts"), settings.size("hidden_size")
    width, shared_width = (
        settings.size(f"{kind}_intermediate_size") for kind in ("expert", "shared")
    )
    groups, of_groups = settings.size("n_group"), settings.size("topk_group")
    settings.choice("norm_topk_prob", True)

    def parameters(take: Take) -> dict[str, Tensor]:
        return {
            "router.weight": take("gate.weight", experts, hidden),
            **dict(stacked(take, experts, width, hidden)),
            **dict(shared(take, "shared_experts", shared_width, hidden)),
        }

    return System(
        flags=[
            *(*router_flags(settings), *swiglu_flags(width), *shared_flags(shared_width)),
            *("--moe-router-score-function", "sigmoid", "--moe-router-enable-expert-bias"),
            *("--moe-router-num-groups", str(groups), "--moe-router-group-topk", str(of_groups)),
            *("--grove-group-score", "top2"),
            *("--moe-router-topk-scaling-factor", str(settings.number("routed_scaling_factor"))),
        ],
        parameters=parameters,
        buffers={"router.expert_bias": _BIAS},
        losses={"seq_aux_paper": seq_aux(1.0)},
        extras=ROUTING | {_BIAS, "scores", "counts", "bias_after_update_u0.001"},
    )
