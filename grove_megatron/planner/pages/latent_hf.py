"""A ``config.json`` of DeepSeek-V2 or V3 as Megatron flags: for plans, as no weights are converted.

Keys are those of their configuration classes (Hugging Face transformers, ``DeepseekV2Config`` and
``DeepseekV3Config``); a layer has experts from ``first_k_dense_replace`` on.
"""

from typing import Any

from ...checkpoint.config_keys import Keys, brief, refuse_all
from ...checks.flags import words_of

CLASSES = {"deepseek_v2": "DeepseekV2ForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM"}
"""By ``model_type``."""
_V3 = CLASSES["deepseek_v3"]
# Of V2, how experts are chosen; V3 has the last alone.
_GREEDY, _OF_GROUPS, _BIASED = "greedy", "group_limited_greedy", "noaux_tc"


def latent_class(config: dict[str, Any]) -> str | None:
    """Which of CLASSES a config names, by ``architectures`` or else ``model_type``."""
    named = config.get("architectures")
    if not named:
        kind = config.get("model_type")
        return CLASSES.get(kind) if isinstance(kind, str) else None
    listed = named if isinstance(named, list) else [named]
    return next((name for name in CLASSES.values() if name in listed), None)


def latent_flags(config: dict[str, Any], where: str) -> list[str]:
    """The flags of the model: no parallelism, no training.

    Args:
        config: of one of CLASSES.
        where: its name in the error.

    Raises:
        ValueError: everything that is missing, wrong or not handled, a line each.
    """
    keys, is_v3 = Keys(config), latent_class(config) == _V3
    layers, dense = keys.whole("num_hidden_layers"), _count(keys, "first_k_dense_replace")
    if dense and dense >= layers > 0:
        keys.problems.append(
            f"first_k_dense_replace ({dense}) leaves none of num_hidden_layers ({layers}) with "
            "experts; correct one of them"
        )
    heads, width = keys.whole("num_attention_heads"), keys.whole("moe_intermediate_size")
    settings: dict[str, Any] = {
        "num_layers": layers,
        "hidden_size": keys.whole("hidden_size"),
        "num_attention_heads": heads,
        "ffn_hidden_size": keys.whole("intermediate_size"),
        "max_position_embeddings": keys.whole("max_position_embeddings"),
        "vocab_size": keys.whole("vocab_size"),
        "multi_latent_attention": True,
        "kv_lora_rank": keys.whole("kv_lora_rank"),
        "qk_head_dim": keys.whole("qk_nope_head_dim"),
        "qk_pos_emb_head_dim": keys.whole("qk_rope_head_dim"),
        "v_head_dim": keys.whole("v_head_dim"),
        # Norms of what is compressed.
        "qk_layernorm": True,
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "swiglu": True,
        "num_experts": keys.whole("n_routed_experts"),
        "moe_router_topk": keys.whole("num_experts_per_tok"),
        "moe_ffn_hidden_size": width,
        "moe_layer_freq": f"[0]*{dense}+[1]*{layers - dense}" if dense else 1,
        "moe_grouped_gemm": True,
        "moe_token_dispatcher_type": "alltoall",
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }
    settings["padded_vocab_size"] = settings["vocab_size"]
    # null: queries are projected in one step.
    if "q_lora_rank" not in config or config["q_lora_rank"] is not None:
        settings["q_lora_rank"] = keys.whole("q_lora_rank")
    if config.get("n_shared_experts"):
        settings["moe_shared_expert_intermediate_size"] = width * keys.whole("n_shared_experts")
    settings |= _router(keys, is_v3=is_v3)
    if depths := _count(keys, "num_nextn_predict_layers", default=0):
        settings["mtp_num_layers"] = depths
    if not keys.flag("tie_word_embeddings", default=False):
        settings["untie_embeddings_and_output_weights"] = True
    if config.get("num_key_value_heads") not in (None, heads):
        keys.problems.append(
            f"num_key_value_heads ({brief(config['num_key_value_heads'])}) differs from "
            f"num_attention_heads ({heads}), as many as latent attention has; correct it"
        )
    keys.only("moe_layer_freq", 1)
    keys.only("hidden_act", "silu")
    keys.only("attention_bias", False)
    if keys.problems:
        refuse_all(where, keys.problems)
    return [*words_of(settings), "--disable-bias-linear"]


def _router(keys: Keys, *, is_v3: bool) -> dict[str, Any]:
    """How experts are chosen and weighed."""
    score = keys.config.get("scoring_func", "sigmoid" if is_v3 else "softmax")
    chosen = keys.config.get("topk_method", _BIASED if is_v3 else _GREEDY)
    keys.only("scoring_func", score if score in ("softmax", "sigmoid") else "softmax or sigmoid")
    known = (_BIASED,) if is_v3 else (_GREEDY, _OF_GROUPS, _BIASED)
    keys.only("topk_method", *(known if "topk_method" in keys.config else (chosen,)))
    found: dict[str, Any] = {"moe_router_score_function": score}
    if chosen == _BIASED:
        found["moe_router_enable_expert_bias"] = True
    if chosen != _GREEDY:
        groups, some = keys.whole("n_group"), keys.whole("topk_group")
        # Of one group there is no choice.
        if groups > 1:
            found |= {"moe_router_num_groups": groups, "moe_router_group_topk": some}
    return found


def _count(keys: Keys, key: str, default: int | None = None) -> int:
    """A whole number of 0 or more."""
    value = keys.config.get(key)
    if type(value) is int and value == 0:
        return 0
    return default if value is None and default is not None else keys.whole(key)
