"""DBRX: softmax over the selected logits, SwiGLU experts, all rows of all experts in one matrix.

transformers 4.46.3, models/dbrx/modeling_dbrx.py.
"""

from torch import Tensor

from ..layout import Take
from ..pieces import gated, hf_losses, router_flags, swiglu_flags
from ..settings import Settings
from ..system import System

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

    losses = hf_losses(settings)
    del losses["hf_aux"]
    return System(
        flags=[*router_flags(settings), *swiglu_flags(width)],
        parameters=parameters,
        losses=losses,
        not_here={
            "hf_aux": "transformers takes the softmax of what is a softmax already "
            "(modeling_dbrx.py:606,721 @ 4.46.3); DBRX was trained with MegaBlocks, which does not"
        },
    )
