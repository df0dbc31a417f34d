"""Yuan 2.0-M32: logits by attention between experts, softmax over the selected.

IEIT-Yuan/Yuan2.0-M32@b403a2b yuan_moe_hf_model.py:366-393; arXiv 2405.17976.
"""

import torch
from torch import Tensor

from ..layout import Take
from ..pieces import hf_losses, pre_softmax, router_flags, swiglu_flags
from ..settings import Settings
from ..system import System

NAMES = ("yuan", "yuan2.0-m32")


def system(settings: Settings) -> System:
    experts, hidden = settings.size("num_experts"), settings.size("hidden_size")
    width = settings.size("expert_intermediate_size")
    normalised = settings.choice("norm_topk_prob", True)

    def parameters(take: Take) -> dict[str, Tensor]:
        # One matrix, as in their Megatron.
        parts = [take(f"gate.{name}.weight", experts, hidden) for name in ("query", "key", "value")]
        found = {"router.gate_attention.weight": torch.cat(parts)}
        for e in range(experts):
            up, down = f"experts.{e}.linear_fc1.weight", f"experts.{e}.linear_fc2.weight"
            found[up] = take(f"experts.{e}.w1.weight", 2 * width, hidden)
            found[down] = take(f"experts.{e}.w2.weight", hidden, width)
        return found

    losses = hf_losses(settings)
    del losses["hf_aux"]
    return System(
        flags=[
            *(*router_flags(settings), *pre_softmax(normalised), *swiglu_flags(width)),
            *("--grove-router-gate", "attention"),
        ],
        parameters=parameters,
        losses=losses,
    )
