"""Qwen3-MoE (Hugging Face transformers, models/qwen3_moe/modeling_qwen3_moe.py)."""

from .family import Family, swiglu
from .qwen3 import QWEN3

# Others name them so too.
QK_NORMS = {
    "self_attention.q_layernorm.weight": ("self_attn.q_norm.weight",),
    "self_attention.k_layernorm.weight": ("self_attn.k_norm.weight",),
}
ATTENTION = {
    name: QWEN3.names[name]
    for name in (
        "embedding.word_embeddings.weight",
        "self_attention.linear_qkv.layer_norm_weight",
        "self_attention.linear_qkv.weight",
        "self_attention.linear_proj.weight",
        "decoder.final_layernorm.weight",
        "output_layer.weight",
    )
} | {"pre_mlp_layernorm.weight": ("post_attention_layernorm.weight",)}
EXPERTS = {
    "mlp.router.weight": ("mlp.gate.weight",),
    **swiglu("mlp.experts.experts", "mlp.experts.{index}"),
}

QWEN3_MOE = Family(
    "Qwen3MoeForCausalLM",
    "qwen3_moe",
    {
        **QWEN3.names,
        **ATTENTION,
        **EXPERTS,
        "mlp.router.expert_bias": ("mlp.expert_bias",),
    },
)
