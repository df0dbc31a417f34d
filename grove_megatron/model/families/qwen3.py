"""Qwen3, dense (Hugging Face transformers, models/qwen3/modeling_qwen3.py)."""

from .family import Family, swiglu

QWEN3 = Family(
    "Qwen3ForCausalLM",
    "qwen3",
    {
        "embedding.word_embeddings.weight": ("model.embed_tokens.weight",),
        "self_attention.linear_qkv.layer_norm_weight": ("input_layernorm.weight",),
        "self_attention.linear_qkv.weight": (
            "self_attn.q_proj.weight",
            "self_attn.k_proj.weight",
            "self_attn.v_proj.weight",
        ),
        "self_attention.q_layernorm.weight": ("self_attn.q_norm.weight",),
        "self_attention.k_layernorm.weight": ("self_attn.k_norm.weight",),
        "self_attention.linear_proj.weight": ("self_attn.o_proj.weight",),
        "mlp.linear_fc1.layer_norm_weight": ("post_attention_layernorm.weight",),
        **swiglu("mlp", "mlp"),
        "decoder.final_layernorm.weight": ("model.norm.weight",),
        "output_layer.weight": ("lm_head.weight",),
    },
)
