"""An :class:`Architecture` as the fields of a Megatron-Bridge provider, and back."""

from argparse import Namespace
from typing import Any

from ..checkpoint.hf_config import RELEASED, config_of, unlike_release
from ..checkpoint.megatron_args import architecture_of_args
from ..checkpoint.source import refuse_parts
from ..model.architecture import Architecture


def provider_settings(architecture: Architecture) -> dict[str, Any]:
    """Fields that make a provider build the model: sizes, router, Grove settings.

    The model computes what the Hugging Face one does: no dropout, no auxiliary losses, router
    logits in fp32. Precision, parallelism and the padding of the vocabulary are left alone.
    """
    a = _of_release(architecture)
    return {
        "num_layers": a.num_layers,
        "hidden_size": a.hidden_size,
        "num_attention_heads": a.num_attention_heads,
        "num_query_groups": a.num_query_groups,
        "kv_channels": a.head_dim,
        # Where every layer has experts nothing has this width, and Megatron's default may not fit.
        "ffn_hidden_size": a.ffn_hidden_size or a.moe_ffn_hidden_size,
        "vocab_size": a.vocab_size,
        "share_embeddings_and_output_weights": a.tied_embeddings,
        # Megatron-Bridge takes the one for the other, model_bridge.py:446 @ 0.6.2.
        "seq_length": a.max_position_embeddings,
        "normalization": "RMSNorm",
        "layernorm_epsilon": a.norm_epsilon,
        "position_embedding_type": "rope",
        "rotary_base": int(a.rotary_base),
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "qk_layernorm": True,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        **_expert_settings(a),
    }


def _expert_settings(a: Architecture) -> dict[str, Any]:
    return {
        "num_moe_experts": a.num_experts,
        "moe_ffn_hidden_size": a.moe_ffn_hidden_size,
        "moe_layer_freq": [int(is_moe) for is_moe in a.moe_layers],
        "moe_router_topk": a.topk,
        "moe_router_pre_softmax": not a.normalized_topk,
        # Megatron accepts an expert bias beside it; GroveRouter never asks for it.
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": a.expert_bias,
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_router_dtype": "fp32",
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": True,
        "grove_num_groups": a.num_groups,
        "grove_adjugate_ffn_hidden_size": a.adjugate_ffn_hidden_size,
        "grove_adjugate_scale": a.adjugate_scale,
    }


def architecture_of_provider(provider: Any, *, is_silu: bool) -> Architecture:
    """What the model of a provider is.

    Args:
        provider: a GPTModelProvider with the fields of GroveTransformerConfig.
        is_silu: its activation function is SiLU.

    Raises:
        ValueError: settings that no Hugging Face GroveMoE has, a line each, spelled as Megatron's
            flags; or those of another parent than Qwen3-MoE.
    """
    p = provider
    flags = {
        "num_experts": p.num_moe_experts,
        "swiglu": p.gated_linear_unit and is_silu,
        "group_query_attention": p.num_query_groups is not None,
        "untie_embeddings_and_output_weights": not p.share_embeddings_and_output_weights,
        "max_position_embeddings": p.seq_length,
        "use_rope_scaling": p.rope_scaling,
        "rotary_seq_len_interpolation_factor": p.seq_len_interpolation_factor,
    }
    refuse_parts(p, "the provider")
    return _of_release(architecture_of_args(Namespace(**(vars(p) | flags))))


def _of_release(architecture: Architecture) -> Architecture:
    """The same.

    Raises:
        ValueError: it has parts of another parent than Qwen3-MoE.
    """
    if not architecture.is_grove:
        raise ValueError(
            "--grove-num-groups (None) is needed by a GroveMoE; use Megatron-Bridge's own bridge, "
            "or give groups"
        )
    if found := unlike_release(architecture):
        raise ValueError(
            f"{', '.join(found)} of a Grove MoE upcycled from another parent than Qwen3-MoE is not "
            "handled by the bridge; use grove import and grove export"
        )
    return architecture


def hf_config_of(architecture: Architecture, dtype: str) -> dict[str, Any]:
    """``config.json`` of the model, with the keys that the released one leaves to its code.

    Megatron-Bridge fills keys that are missing from the config of another model
    (conform_config_to_reference, utils.py @ 0.6.2), so these are never missing.
    """
    a = architecture
    grove = {
        "num_experts_per_group": a.num_experts // a.num_groups,
        "parallel_expert_intermediate_size": a.adjugate_ffn_hidden_size,
        "small_experts_weight": a.adjugate_scale,
    }
    assert grove.keys() == RELEASED.keys()
    return config_of(a, None, dtype) | grove
