"""A Hugging Face GroveMoE ``config.json`` as Megatron flags."""

import json
from pathlib import Path
from typing import Any

# Literals of the released modelling code, which reads no keys for them (
# modeling_grove_moe.py, lines 298, 299, 376 @ c4c69e5).
DEFAULTS = {
    "num_experts_per_group": 2,
    "parallel_expert_intermediate_size": 128,
    "small_experts_weight": 0.05,
}

_REQUIRED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
)

# Key, values this converter handles (the first is the default of an absent key).
_ONLY: list[tuple[str, tuple[Any, ...]]] = [
    ("hidden_act", ("silu",)),
    ("attention_bias", (False,)),
    ("rope_scaling", (None,)),
    ("use_sliding_window", (False,)),
    ("decoder_sparse_step", (1,)),
    ("mlp_only_layers", ([],)),
]


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check ``config.json``; Grove keys get the release's values where absent.

    Raises:
        ValueError: everything that is missing or not handled, one line each.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"--hf ({folder}) has no config.json; name a Hugging Face model folder")
    config: dict[str, Any] = DEFAULTS | json.loads(path.read_text(encoding="utf-8"))
    problems = [f"{key} (absent) is needed" for key in _REQUIRED if key not in config]
    for key, handled in _ONLY:
        if config.get(key, handled[0]) not in handled:
            problems.append(f"{key} ({config[key]}) is not {handled[0]}, the one value handled")
    if config.get("rope_theta", 0) != int(config.get("rope_theta", 0)):
        problems.append(f"rope_theta ({config['rope_theta']}) is not a whole number")
    if not problems and config["num_experts"] % config["num_experts_per_group"]:
        problems.append(
            f"num_experts ({config['num_experts']}) is not a multiple of num_experts_per_group "
            f"({config['num_experts_per_group']})"
        )
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))
    return config


def megatron_flags(config: dict[str, Any]) -> list[str]:
    """Flags that describe the model: sizes, router, Grove settings. No parallelism, no training."""
    groups = config["num_experts"] // config["num_experts_per_group"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    valued = {
        "num-layers": config["num_hidden_layers"],
        "hidden-size": config["hidden_size"],
        "num-attention-heads": config["num_attention_heads"],
        "num-query-groups": config["num_key_value_heads"],
        "kv-channels": head_dim,
        "ffn-hidden-size": config.get("intermediate_size", config["moe_intermediate_size"]),
        "max-position-embeddings": config["max_position_embeddings"],
        "norm-epsilon": config["rms_norm_eps"],
        "normalization": "RMSNorm",
        "position-embedding-type": "rope",
        "rotary-base": int(config["rope_theta"]),
        "vocab-size": config["vocab_size"],
        "padded-vocab-size": config["vocab_size"],
        "num-experts": config["num_experts"],
        "moe-router-topk": config["num_experts_per_tok"],
        "moe-ffn-hidden-size": config["moe_intermediate_size"],
        "moe-router-load-balancing-type": "none",
        "moe-router-dtype": "fp32",
        "moe-token-dispatcher-type": "alltoall",
        "grove-num-groups": groups,
        "grove-adjugate-ffn-hidden-size": config["parallel_expert_intermediate_size"],
        "grove-adjugate-scale": config["small_experts_weight"],
        "attention-dropout": 0.0,
        "hidden-dropout": 0.0,
    }
    switches = ["group-query-attention", "swiglu", "disable-bias-linear", "qk-layernorm"]
    if not config.get("tie_word_embeddings", False):
        switches.append("untie-embeddings-and-output-weights")
    # norm_topk_prob is not read: the released Grove block renormalises whatever it says.
    flags = [part for name, value in valued.items() for part in (f"--{name}", str(value))]
    return flags + [f"--{name}" for name in switches]
