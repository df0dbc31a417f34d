"""MoE++ (github.com/SkyworkAI/MoE-plus-plus @ 7f43967, modeling_moe_plus_plus.py)."""

from typing import Any

from .family import Family
from .qwen3_moe import ATTENTION

_EXPERT = "mlp.moe.experts.experts.{index}."
# Those without an FFN come after the others.
_CONSTANT = "mlp.moe.experts.experts.{constant}."

MOE_PLUS_PLUS = Family(
    "MoeForCausalLM",
    "MoE++",
    {
        **ATTENTION,
        # One of the two gates.
        "mlp.router.weight": ("mlp.moe.gate.wg.weight",),
        "mlp.router.gate_two_layer.first": ("mlp.moe.gate.wg.0.weight",),
        "mlp.router.gate_two_layer.second": ("mlp.moe.gate.wg.2.weight",),
        "mlp.router.logits_residual.weight": ("mlp.moe.gate.gate_map.weight",),
        "mlp.router.local_constant.weight": (f"{_CONSTANT}wg.weight",),
        "mlp.router.local_constant.vector": (f"{_CONSTANT}constant",),
        "mlp.experts.experts.linear_fc1.weight": (f"{_EXPERT}up_proj.weight",),
        "mlp.experts.experts.linear_fc2.weight": (f"{_EXPERT}down_proj.weight",),
    },
    {
        "mlp.router.local_constant.weight": "2H",
        "mlp.router.local_constant.vector": "H",
        "mlp.experts.experts.linear_fc1.weight": "UH",
    },
)

TOPK = 2
LOCAL = {"grove_constant_experts": 2, "grove_copy_experts": 1, "grove_zero_experts": 1}
"""What is no key of its config but a constant of its code: experts of a token, and those without an
FFN, in the order of the router's columns, behind the routed ones."""


def settings_of(
    *, mixtral_gating: bool, two_layer_gate: bool, norm_std: float | None, multiplied: bool
) -> dict[str, Any]:
    """Settings of a layer of ours that computes what keys of its config say; no defaults.

    Args:
        mixtral_gating: ``moe_use_mixtral_gating``.
        two_layer_gate: ``moe_2layer_gate``.
        norm_std: ``moe_gate_norm_std`` with ``moe_use_logits_norm``, None without.
        multiplied: not ``moe_feature_no_mul_topk``.
    """
    settings: dict[str, Any] = {"grove_gating_residual": True}
    if not mixtral_gating:
        settings["grove_zero_expert_weight"] = "others"
        if multiplied:
            settings["grove_topk_scaled_input"] = True
    if two_layer_gate:
        settings["grove_router_gate"] = "two_layer"
    if norm_std is not None:
        settings["grove_logit_norm"] = "sample"
        if norm_std != 1.0:
            settings["grove_logit_norm_scale"] = norm_std
    return settings
