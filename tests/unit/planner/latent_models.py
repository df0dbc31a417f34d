"""Models with multi-latent attention, from their authors' config.json."""

from dataclasses import replace

from grove_megatron.model.architecture import LatentAttention, Model

# huggingface.co/deepseek-ai/DeepSeek-V3
DEEPSEEK_V3 = Model(
    hidden_size=7168,
    head_dim=192,
    num_attention_heads=128,
    num_query_groups=128,
    vocab_size=129280,
    moe_layers=(False,) * 3 + (True,) * 58,
    ffn_hidden_size=18432,
    num_experts=256,
    moe_ffn_hidden_size=2048,
    topk=8,
    expert_bias=True,
    shared_expert_size=2048,
    qk_layernorm=True,
    latent=LatentAttention(
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_head_dim=128,
        qk_pos_emb_head_dim=64,
        v_head_dim=128,
    ),
)
# .../DeepSeek-V2
DEEPSEEK_V2 = replace(
    DEEPSEEK_V3,
    hidden_size=5120,
    vocab_size=102400,
    moe_layers=(False,) + (True,) * 59,
    ffn_hidden_size=12288,
    num_experts=160,
    moe_ffn_hidden_size=1536,
    topk=6,
    expert_bias=False,
    shared_expert_size=3072,
)
# .../DeepSeek-V2-Lite: queries are not compressed.
DEEPSEEK_V2_LITE = replace(
    DEEPSEEK_V2,
    hidden_size=2048,
    num_attention_heads=16,
    num_query_groups=16,
    moe_layers=(False,) + (True,) * 26,
    ffn_hidden_size=10944,
    num_experts=64,
    moe_ffn_hidden_size=1408,
    shared_expert_size=2816,
    latent=LatentAttention(
        kv_lora_rank=512, qk_head_dim=128, qk_pos_emb_head_dim=64, v_head_dim=128
    ),
)
