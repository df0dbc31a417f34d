"""Qwen3-MoE (Hugging Face transformers, models/qwen3_moe/modeling_qwen3_moe.py)."""

from .family import Family, swiglu
from .qwen3 import QWEN3

QWEN3_MOE = Family(
    "Qwen3MoeForCausalLM",
    "qwen3_moe",
    {
        **QWEN3.names,
        "pre_mlp_layernorm.weight": ("post_attention_layernorm.weight",),
        "mlp.router.weight": ("mlp.gate.weight",),
        "mlp.router.expert_bias": ("mlp.expert_bias",),
        **swiglu("mlp.experts.experts", "mlp.experts.{index}"),
    },
)
