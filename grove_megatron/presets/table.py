"""The released models.

A coefficient of an auxiliary loss is Megatron's, of one layer, whose losses are added up. Where a
model's own is of another form it is converted, for balanced experts: MegaBlocks takes the mean over
L layers (c / L), transformers all layers' tokens at once and the k choices of a token apart
(c k / L).
"""

from ..model.families.moe_plus_plus import LOCAL, settings_of
from .preset import Difference, Preset, Value

_DECODER: dict[str, Value] = {
    "normalization": "RMSNorm",
    "layernorm_epsilon": 1e-5,
    "qk_layernorm": False,
    "group_query_attention": False,
    "add_qkv_bias": False,
    "add_bias_linear": False,
    "swiglu": True,
    "quick_geglu": False,
    "moe_router_pre_softmax": False,
    "position_embedding_type": "rope",
    "rotary_base": 10000,
    "untie_embeddings_and_output_weights": True,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
}
# What makes another model of one too, and none here has otherwise than Megatron by default unless
# its settings say so.
MEGATRONS: dict[str, Value | None] = {
    "activation_func_clamp_value": None,
    "attention_output_gate": False,
    "apply_residual_connection_post_layernorm": False,
    "experimental_attention_variant": None,
    "glu_linear_offset": 0.0,
    "linear_attention_freq": None,
    "moe_latent_size": None,
    "moe_layer_freq": 1,
    "moe_router_group_topk": None,
    "moe_router_num_groups": None,
    "moe_router_score_function": "softmax",
    "moe_router_topk_scaling_factor": None,
    "moe_shared_expert_gate": False,
    "moe_shared_expert_intermediate_size": None,
    "multi_latent_attention": False,
    "no_rope_freq": None,
    "qk_l2_norm": False,
    "rotary_interleaved": False,
    "rotary_percent": 1.0,
    "softmax_type": "vanilla",
    "squared_relu": False,
    "window_size": None,
}
_PLAIN: dict[str, Value] = {"grove_dispatch": True}


def _attention(layers: int, hidden: int, heads: int, groups: int, head: int) -> dict[str, Value]:
    """Layers, and attention with so many heads of queries and of keys, each so wide."""
    sizes: dict[str, Value] = {
        "num_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "kv_channels": head,
    }
    return sizes | ({} if groups == heads else _grouped(groups))


def _grouped(groups: int) -> dict[str, Value]:
    return {"group_query_attention": True, "num_query_groups": groups}


def _tokens(rows: int, longest: int) -> dict[str, Value]:
    """Rows of the embedding, without padding, and the longest sequence."""
    return {
        "vocab_size": rows,
        "padded_vocab_size": rows,
        "max_position_embeddings": longest,
    }


def _experts(experts: int, topk: int, width: int, dense: int | None = None) -> dict[str, Value]:
    """Routed experts, how many a token selects, their width, and that of layers without."""
    return {
        "num_experts": experts,
        "moe_router_topk": topk,
        "moe_ffn_hidden_size": width,
        # Where every layer has experts nothing has this width, and Megatron's default may not fit.
        "ffn_hidden_size": dense or width,
    }


def _loss(kind: str, coefficient: float) -> dict[str, Value]:
    # Megatron takes several of both.
    return {"moe_router_load_balancing_type": [kind], "moe_aux_loss_coeff": [coefficient]}


_NO_LOSS: dict[str, Value] = {"moe_router_load_balancing_type": ["none"]}
# Weights are the softmax over all experts, not over the selected.
_RAW: dict[str, Value] = {"moe_router_pre_softmax": True}

# MoE++: a balance loss and a capacity (arXiv 2410.07348, gamma 1.1, beta 0.01), tau 0.75.
_HETEROGENEOUS: dict[str, Value] = {
    "layernorm_epsilon": 1e-6,
    "moe_router_dtype": "fp32",
    "moe_expert_capacity_factor": 1.1,
    "grove_heterogeneous_loss_coeff": 0.01,
    "grove_local_tau": 0.75,
    **_NO_LOSS,
    **_PLAIN,
}

_QWEN3: dict[str, Value] = {
    **_DECODER,
    **_attention(48, 2048, 32, 4, 128),
    **_tokens(151936, 40960),
    **_experts(128, 8, 768),
    "layernorm_epsilon": 1e-6,
    "rotary_base": 1000000,
    "qk_layernorm": True,
}


def _moe_plus_plus(experts: int, constant: int) -> dict[str, Value]:
    """Of arXiv 2410.07348, Table 2: the three with 12 layers; the gate of its equations."""
    return {
        **_DECODER,
        **_attention(12, 768, 12, 12, 64),
        **_tokens(65536, 2048),
        **_experts(experts, 2, 2048),
        **LOCAL,
        "grove_constant_experts": constant,
        "grove_gating_residual": True,
        **_RAW,
        **_HETEROGENEOUS,
    }


_ROWS = (
    Preset(
        name="grovemoe-33b",
        settings={
            **_QWEN3,
            "grove_num_groups": 64,
            "grove_adjugate_ffn_hidden_size": 128,
            "grove_adjugate_scale": 0.05,
            "moe_router_dtype": "fp32",
            "moe_router_enable_expert_bias": True,
            "moe_router_bias_update_rate": 1e-3,
            **_NO_LOSS,
        },
        source="arXiv 2508.07785; inclusionAI/GroveMoE-Base config.json",
        released=32_948_041_728,
    ),
    Preset(
        name="mixtral-8x7b",
        settings={
            **_DECODER,
            **_attention(32, 4096, 32, 8, 128),
            **_tokens(32000, 32768),
            **_experts(8, 2, 14336),
            "rotary_base": 1000000,
            **_loss("aux_loss", 0.02 * 2 / 32),
            **_PLAIN,
        },
        source="arXiv 2401.04088; mistralai/Mixtral-8x7B-v0.1 config.json",
        released=46_702_792_704,
        active=12_879_925_248,
    ),
    Preset(
        name="mixtral-8x22b",
        settings={
            **_DECODER,
            **_attention(56, 6144, 48, 8, 128),
            **_tokens(32768, 65536),
            **_experts(8, 2, 16384),
            "rotary_base": 1000000,
            **_loss("aux_loss", 0.001 * 2 / 56),
            **_PLAIN,
        },
        source="mistral.ai/news/mixtral-8x22b; mistralai/Mixtral-8x22B-Instruct-v0.1 config.json",
        released=140_630_071_296,
        active=39_161_468_928,
    ),
    Preset(
        name="qwen1.5-moe-a2.7b",
        settings={
            **_DECODER,
            **_attention(24, 2048, 16, 16, 128),
            **_tokens(151936, 8192),
            **_experts(60, 4, 1408),
            "layernorm_epsilon": 1e-6,
            "rotary_base": 1000000,
            "add_qkv_bias": True,
            "moe_shared_expert_intermediate_size": 5632,
            "moe_shared_expert_gate": True,
            **_RAW,
            **_loss("aux_loss", 0.001 * 4 / 24),
            **_PLAIN,
        },
        source="qwenlm.github.io/blog/qwen-moe; Qwen/Qwen1.5-MoE-A2.7B config.json",
        released=14_315_784_192,
        active=2_689_173_504,
    ),
    Preset(
        name="qwen3-30b-a3b",
        settings={**_QWEN3, **_loss("global_aux_loss", 0.001 * 8 / 48), **_PLAIN},
        source="arXiv 2505.09388; Qwen/Qwen3-30B-A3B config.json",
        released=30_532_122_624,
        active=3_353_032_704,
    ),
    Preset(
        name="olmoe-7b",
        settings={
            **_DECODER,
            **_attention(16, 2048, 16, 16, 128),
            **_tokens(50304, 4096),
            **_experts(64, 8, 1024),
            "qk_layernorm": True,
            **_RAW,
            **_loss("aux_loss", 0.01 / 16),
            "moe_z_loss_coeff": 0.001 / 16,
            "grove_whole_qk_norm": True,
            **_PLAIN,
        },
        source="arXiv 2409.02060; allenai/OLMoE-1B-7B-0924 config.json",
        released=6_919_161_856,
        active=1_282_017_280,
    ),
    Preset(
        name="dbrx",
        settings={
            **_DECODER,
            **_attention(40, 6144, 48, 8, 128),
            **_tokens(100352, 32768),
            **_experts(16, 4, 10752),
            "normalization": "LayerNorm",
            "rotary_base": 500000,
            **_loss("aux_loss", 0.05 / 40),
            **_PLAIN,
        },
        source="databricks.com/blog, Introducing DBRX; databricks/dbrx-base config.json",
        released=131_596_523_520,
        active=36_469_708_800,
        differs=(
            Difference("LayerNorms without a bias; here with one", (2 * 40 + 1) * 6144),
            Difference("queries, keys and values clipped at 8 (clip_qkv); here not"),
        ),
    ),
    Preset(
        name="grok-1",
        settings={
            **_DECODER,
            **_attention(64, 6144, 48, 8, 128),
            **_tokens(131072, 8192),
            **_experts(8, 2, 32768),
            "swiglu": False,
            "quick_geglu": True,
            "untie_embeddings_and_output_weights": False,
            # Its multipliers of embedding and logits, sqrt(6144) and 1 / sqrt(3).
            "use_mup": True,
            "mup_embedding_mult": 78.38367176906169,
            "mup_output_mult": 0.5773502691896257,
            "mup_attn_scale_power": 0.5,
            "moe_router_dtype": "fp32",
            **_RAW,
            **_NO_LOSS,
            **_PLAIN,
        },
        source="xai-org/grok-1@7050ed2 run.py, model.py",
        released=315_684_820_992,
        active=83_756_587_008,
        differs=(
            Difference(
                "norms after attention and after the experts too; here before them alone",
                -2 * 64 * 6144,
            ),
            Difference("GELU experts, by tanh; here by x sigmoid(1.702 x) (--quick-geglu)"),
            Difference("attention logits capped, 30 tanh(z / 30); here not"),
        ),
    ),
    Preset(
        name="deepseekmoe-16b",
        settings={
            **_DECODER,
            **_attention(28, 2048, 16, 16, 128),
            **_tokens(102400, 4096),
            **_experts(64, 6, 1408, 10944),
            "layernorm_epsilon": 1e-6,
            "moe_layer_freq": [0] + [1] * 27,
            "moe_shared_expert_intermediate_size": 2 * 1408,
            **_RAW,
            **_loss("seq_aux_loss", 0.001),
            **_PLAIN,
        },
        source="arXiv 2401.06066; deepseek-ai/deepseek-moe-16b-base config.json",
        released=16_375_728_128,
        active=2_828_650_496,
    ),
    Preset(
        name="switch-base-128",
        settings={
            **_DECODER,
            **_attention(12, 768, 12, 12, 64),
            **_tokens(32128, 512),
            **_experts(128, 1, 3072, 3072),
            "layernorm_epsilon": 1e-6,
            "swiglu": False,
            "untie_embeddings_and_output_weights": False,
            "attention_dropout": 0.1,
            "hidden_dropout": 0.1,
            "moe_layer_freq": [0, 1] * 6,
            "moe_router_dtype": "fp32",
            "moe_input_jitter_eps": 0.01,
            "moe_expert_capacity_factor": 1.25,
            "moe_token_drop_policy": "position",
            **_RAW,
            **_loss("aux_loss", 0.01),
            **_PLAIN,
        },
        source="arXiv 2101.03961; google/switch-base-128 config.json",
        released=7_415_217_408,
        differs=(
            Difference("T5's encoder; here its decoder stack alone", -3_681_111_168),
            Difference("attention to the encoder in every layer; here none", -12 * 2_360_064),
            Difference("learned relative positions; here rotary ones", -12 * 32),
            Difference("ReLU; here GELU"),
            Difference("a capacity of every sequence; here of a micro batch"),
            Difference(
                "attention without 1 / sqrt(64), logits times 1 / sqrt(768); here the usual"
            ),
        ),
    ),
    *(
        Preset(
            name=name,
            settings=_moe_plus_plus(experts, constant),
            source="arXiv 2410.07348, Table 2",
            released=released,
        )
        for name, experts, constant, released in (
            ("moe++-0.6b", 8, 2, 582_146_496),
            ("moe++-1b", 16, 2, 1_035_208_128),
            ("moe++-2b", 32, 6, 1_941_487_104),
        )
    ),
    Preset(
        name="moe++-7b",
        settings={
            **_DECODER,
            **_attention(24, 1536, 16, 16, 96),
            **_tokens(65536, 2048),
            **_experts(16, 2, 4096),
            **LOCAL,
            **settings_of(
                mixtral_gating=False, two_layer_gate=False, norm_std=1.0, multiplied=False
            ),
            **_HETEROGENEOUS,
        },
        source="arXiv 2410.07348; Chat-UniVi/MoE-Plus-Plus-7B config.json",
        released=7_676_619_648,
        differs=(
            Difference("no capacity in its code; here that of its training, which drops tokens"),
        ),
    ),
)

PRESETS = {row.name: row for row in _ROWS}
