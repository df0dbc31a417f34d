"""Qwen1.5-MoE and Qwen2-MoE (transformers, models/qwen2_moe/modeling_qwen2_moe.py @ 4.46.3)."""

from .family import Family, swiglu
from .qwen3_moe import ATTENTION, EXPERTS

BIASES = tuple(f"self_attn.{name}_proj.bias" for name in "qkv")
SHARED = {
    **swiglu("mlp.shared_experts", "mlp.shared_expert"),
    "mlp.shared_experts.gate_weight": ("mlp.shared_expert_gate.weight",),
}
DENSE = {
    "mlp.linear_fc1.layer_norm_weight": ("post_attention_layernorm.weight",),
    **swiglu("mlp", "mlp"),
}

QWEN2_MOE = Family(
    "Qwen2MoeForCausalLM",
    "qwen2_moe",
    {**ATTENTION, "self_attention.linear_qkv.bias": BIASES, **DENSE, **EXPERTS, **SHARED},
)
