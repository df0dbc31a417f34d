"""A MoE++ model: keys of its ``config.json``, and what of Megatron's arguments they can say.

SkyworkAI/MoE-plus-plus@7f43967 configuration_moe_plus_plus.py. What is a constant of the authors'
code, and no key, is a constant here.
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..checks.flags import flag_of
from ..model.architecture import Architecture
from ..model.families.moe_plus_plus import LOCAL, MOE_PLUS_PLUS, TOPK, settings_of
from ..planner.parts import grove_defaults
from .config_keys import Keys, brief
from .layer_settings import with_settings

_WITHOUT_FFN = sum(LOCAL.values())
SAYABLE = (
    *LOCAL,
    "grove_gating_residual",
    "grove_zero_expert_weight",
    "grove_topk_scaled_input",
    "grove_router_gate",
    "grove_logit_norm",
    "grove_logit_norm_scale",
)
"""Settings that a config can say."""


def with_experts(dense: Architecture, keys: Keys) -> Architecture:
    """The model of a config, of which the rest is read."""
    heads, hidden = dense.num_attention_heads, dense.hidden_size
    if heads and hidden and dense.head_dim * heads != hidden:
        keys.problems.append(
            f"head_dim ({dense.head_dim}) times num_attention_heads ({heads}) is not hidden_size "
            f"({hidden}), and the code of {MOE_PLUS_PLUS.class_name} divides; correct one of them"
        )
    if dense.num_layers == 1:
        keys.problems.append(
            "num_hidden_layers (1) leaves the gating residual nothing to add; use a model with 2 "
            "or more"
        )
    keys.only("moe_expert_interval", 1)
    normed = _flag(keys, "moe_use_logits_norm", False)
    settings = settings_of(
        mixtral_gating=_flag(keys, "moe_use_mixtral_gating", False),
        two_layer_gate=_flag(keys, "moe_2layer_gate", True),
        norm_std=keys.number("moe_gate_norm_std", default=1.0) if normed else None,
        multiplied=not _flag(keys, "moe_feature_no_mul_topk", False),
    )
    return replace(
        with_settings(dense, settings | LOCAL),
        num_experts=max(0, _columns(keys) - _WITHOUT_FFN),
        moe_ffn_hidden_size=keys.whole("intermediate_size"),
        topk=TOPK,
    )


def _flag(keys: Keys, key: str, default: bool) -> bool:
    """Null is not the default: the code takes it for false."""
    if key in keys.config and keys.config[key] is None:
        keys.problems.append(f"{key} (null) is not true or false; correct it")
    return keys.flag(key, default)


def _columns(keys: Keys) -> int:
    """``num_experts`` is a list, of which the code reads the first for every layer."""
    given = keys.config.get("num_experts", "absent")
    of_layers = given if isinstance(given, list) else []
    if not of_layers or any(type(n) is not int or n != of_layers[0] for n in of_layers):
        keys.problems.append(
            f"num_experts ({brief(given)}) is not a list of one whole number, of all experts of a "
            "layer; correct it"
        )
        return 0
    if of_layers[0] <= _WITHOUT_FFN:
        keys.problems.append(
            f"num_experts ({brief(given)}) leaves none with an FFN beside the {_WITHOUT_FFN} "
            "without; correct it"
        )
    return int(of_layers[0])


def keys_of(a: Architecture) -> dict[str, Any]:
    """Every key that describes the model."""
    settings = dict(a.settings)
    keys: dict[str, Any] = {
        "architectures": [MOE_PLUS_PLUS.class_name],
        "model_type": MOE_PLUS_PLUS.model_type,
        "hidden_act": "silu",
        "hidden_size": a.hidden_size,
        "intermediate_size": a.moe_ffn_hidden_size,
        "max_position_embeddings": a.max_position_embeddings,
        "moe_2layer_gate": settings.get("grove_router_gate") == "two_layer",
        "moe_expert_interval": 1,
        "moe_use_logits_norm": "grove_logit_norm" in settings,
        "moe_use_mixtral_gating": "grove_zero_expert_weight" not in settings,
        "num_attention_heads": a.num_attention_heads,
        "num_experts": [a.num_experts + a.local_experts],
        "num_hidden_layers": a.num_layers,
        "num_key_value_heads": a.num_query_groups,
        "rms_norm_eps": a.norm_epsilon,
        "rope_theta": float(a.rotary_base),
        "tie_word_embeddings": a.tied_embeddings,
        "vocab_size": a.vocab_size,
    }
    # The code does not read them otherwise.
    if keys["moe_use_logits_norm"]:
        keys["moe_gate_norm_std"] = settings.get("grove_logit_norm_scale", 1.0)
    if not keys["moe_use_mixtral_gating"]:
        keys["moe_feature_no_mul_topk"] = "grove_topk_scaled_input" not in settings
    return keys


def is_asked_for(args: Namespace) -> bool:
    """Is a model of Megatron's of this family, or of none? It has experts without an FFN."""
    return any(getattr(args, name, 0) for name in LOCAL)


def problems(args: Namespace, architecture: Architecture) -> Iterator[str]:
    """What no model of the authors' code has, flags spelled as on the command line."""
    settings = dict(architecture.settings)
    fix = f"as in every {MOE_PLUS_PLUS.class_name}; train with that"
    released: dict[str, Any] = {**LOCAL, "grove_gating_residual": True}
    for name, value in released.items():
        given = settings.get(name, grove_defaults()[name])
        if given != value:
            yield f"{flag_of(name)} ({given}) is not {value}, {fix}"
    rest = {name: value for name, value in settings.items() if name not in LOCAL}
    mixtral = "grove_zero_expert_weight" not in rest
    if mixtral and "grove_topk_scaled_input" in rest:
        yield (
            f"--grove-topk-scaled-input (True) is beside --grove-zero-expert-weight (own), and no "
            f"{MOE_PLUS_PLUS.class_name} has both; train with others, or without scaling"
        )
    eps, usual = "grove_logit_norm_eps", grove_defaults()["grove_logit_norm_eps"]
    if "grove_logit_norm" in rest and getattr(args, eps, usual) != usual:
        # The code has none, and that one changes nothing but what is flat.
        yield f"{flag_of(eps)} ({getattr(args, eps)}) is not {usual}, {fix}"
    if rest.get("grove_logit_norm", "sample") != "sample":
        yield f"--grove-logit-norm ({rest['grove_logit_norm']}) is not sample or none, {fix}"
    a = architecture
    if a.topk != TOPK:
        yield f"--moe-router-topk ({a.topk}) is not {TOPK}, {fix}"
    if a.head_dim * a.num_attention_heads != a.hidden_size:
        yield (
            f"--kv-channels ({a.head_dim}) times --num-attention-heads ({a.num_attention_heads}) "
            f"is not --hidden-size ({a.hidden_size}), {fix}"
        )
    if not a.normalized_topk:
        yield f"--moe-router-pre-softmax (True) is not False, {fix}"
    if not all(a.moe_layers):
        layers = [int(is_moe) for is_moe in a.moe_layers]
        yield f"--moe-layer-freq ({brief(layers)}) is not 1, {fix}"
