"""A Hugging Face ``config.json`` as an :class:`Architecture`, and back.

Every family is read and written with the keys of its configuration class: GroveMoE
(github.com/inclusionAI/GroveMoE), Qwen3-MoE, Qwen3, Qwen2-MoE, Mixtral and OLMoE (Hugging Face
transformers, versions 4 and 5, which spell the rotary embedding and the number of experts
differently), and MoE++ (:mod:`.moe_plus_plus`).
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..model.architecture import Architecture
from ..model.families import FAMILIES, family_of
from ..model.families.family import Family
from ..model.families.grove_moe import GROVE_MOE
from ..model.families.mixtral import MIXTRAL
from ..model.families.moe_plus_plus import MOE_PLUS_PLUS
from ..model.families.olmoe import OLMOE
from ..model.families.qwen2_moe import QWEN2_MOE
from ..model.families.qwen3 import QWEN3
from ..model.families.qwen3_moe import QWEN3_MOE
from . import moe_plus_plus
from .config_keys import Keys, brief, is_number, refuse_all
from .family_rules import family_problems, has_config
from .layer_settings import with_settings

# Literals of the released modeling code, which reads no keys for them (modeling_grove_moe.py,
# lines 298, 299, 376 @ c4c69e5).
RELEASED: dict[str, int | float] = {
    "num_experts_per_group": 2,
    "parallel_expert_intermediate_size": 128,
    "small_experts_weight": 0.05,
}


DEQUANTISE = (
    "dequantise them first (in transformers dequantize(), then save_pretrained), or take the "
    "release that is not quantised"
)


def read_config(folder: Path, flag: str = "--hf") -> dict[str, Any]:
    """Read ``config.json`` as it stands.

    Args:
        folder: of a model.
        flag: that names it.

    Raises:
        ValueError: the file is missing, is not JSON, or is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file() and (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{flag} ({folder}) is an adapter alone; merge it into its model first (in peft "
            "merge_and_unload(), then save_pretrained)"
        )
    if not path.is_file():
        raise ValueError(f"{flag} ({folder}) has no config.json; name a Hugging Face model folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a JSON object but a {type(config).__name__}")
    return config


# ------------------------------------------------------------------------------------------ reading

# Those that can have layers without experts, and a key of its own for the width of one.
_SPARSE_STEPS = (QWEN3_MOE, GROVE_MOE, QWEN2_MOE)
_QK_NORMS = ("head", "none", "all_heads")


# Beginnings of the names of models that users ask for, and what the conversion has no weights for.
_NOT_CONVERTED = {
    "deepseek": "has multi-head latent attention (or its first layers), which is not converted",
    "qwen3next": "has linear attention, which is not converted",
    "gptoss": "has attention sinks and biases in its experts, which are not converted",
    "dbrx": "has clipped attention and experts of another layout, which are not converted",
}


def _why_not(name: str) -> str | None:
    plain = name.lower().replace("_", "").replace("-", "")
    return next((why for begin, why in _NOT_CONVERTED.items() if plain.startswith(begin)), None)


def config_family(config: dict[str, Any], where: str) -> Family:
    """The family a config names: by ``architectures``, or by ``model_type`` where that is absent.

    Raises:
        ValueError: neither is there, or what they name is none of the families.
    """
    names = config.get("architectures") or None
    listed = names if isinstance(names, list) else [names]
    for family in FAMILIES:
        if any(map(family.has_class, listed)):
            return family
        if names is None and config.get("model_type") == family.model_type:
            return family
    handled = ", ".join(family.class_name for family in FAMILIES)
    for name in [*listed, config.get("model_type")]:
        if isinstance(name, str) and (why := _why_not(name)):
            refuse_all(where, [f"{brief(name)} {why}; use one of {handled}"])
    if names is None and config.get("model_type") is None:
        refuse_all(where, [f"architectures (absent) is needed; add one of {handled}"])
    key, value = ("architectures", names) if names else ("model_type", config["model_type"])
    refuse_all(where, [f"{key} ({brief(value)}) is none of those handled; use one of {handled}"])


def is_handled(config: dict[str, Any]) -> bool:
    """Is it of a family that is read?"""
    try:
        config_family(config, "")
    except ValueError:
        return False
    return True


def architecture_of(config: dict[str, Any], where: str) -> Architecture:
    """What the model of a config is.

    A config does not say whether there is an expert bias: ``expert_bias`` is False. The rotary
    theta is kept as it stands, int or float. GroveMoE keys that are absent have the values of the
    release, and its ``norm_topk_prob`` is not read: the released block always renormalises.

    Args:
        config: ``config.json``, see :func:`read_config`.
        where: its name in the error.

    Raises:
        ValueError: everything that is missing, wrong or not handled, a line each.
    """
    family = config_family(config, where)
    keys = Keys(config)
    layers, hidden = keys.whole("num_hidden_layers"), keys.whole("hidden_size")
    heads, groups = keys.whole("num_attention_heads"), _key_value_heads(keys)
    if heads and groups and heads % groups:
        keys.problems.append(
            f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({groups}); "
            "correct one of them"
        )
    moe_layers = (family.has_experts,) * layers
    if family in _SPARSE_STEPS:
        moe_layers = _moe_layers(keys, layers)
    qk_norm = _qk_norm(keys, family)
    architecture = Architecture(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=groups,
        head_dim=_head_dim(keys, family, hidden, heads),
        vocab_size=keys.whole("vocab_size"),
        max_position_embeddings=keys.whole("max_position_embeddings"),
        norm_epsilon=keys.number("rms_norm_eps"),
        rotary_base=_rotary_base(keys),
        tied_embeddings=keys.flag("tie_word_embeddings", default=False),
        qk_layernorm=qk_norm != "none",
        qkv_bias=_qkv_bias(keys, family),
        moe_layers=moe_layers,
        ffn_hidden_size=0 if all(moe_layers) else keys.whole("intermediate_size"),
    )
    if family is MOE_PLUS_PLUS:
        architecture = moe_plus_plus.with_experts(architecture, keys)
    elif family.has_experts:
        architecture = _with_experts(architecture, keys, family)
    if family is GROVE_MOE:
        architecture = _with_groups(architecture, keys)
    if qk_norm == "all_heads":
        architecture = with_settings(architecture, {"grove_whole_qk_norm": True})
    _only_what_is_handled(keys, family)
    if keys.problems:
        refuse_all(where, keys.problems)
    return architecture


def _key_value_heads(keys: Keys) -> int:
    # The configuration classes read null as "as many as query heads".
    if "num_key_value_heads" in keys.config and keys.config["num_key_value_heads"] is None:
        heads = keys.config.get("num_attention_heads")
        return heads if isinstance(heads, int) else 0
    return keys.whole("num_key_value_heads")


def _head_dim(keys: Keys, family: Family, hidden: int, heads: int) -> int:
    """Absent, it is 128 in Qwen3Config; Qwen3MoeConfig has no such field, and the model divides."""
    if family is QWEN3 or not (hidden and heads):
        return keys.whole("head_dim", default=128)
    if keys.config.get("head_dim") is None and hidden % heads:
        keys.problems.append(
            f"hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads}), nor is "
            "there a head_dim; add it"
        )
        return 0
    return keys.whole("head_dim", default=hidden // heads)


def _qk_norm(keys: Keys, family: Family) -> str:
    """Of a GroveMoE its own key says it, which only our code for it reads."""
    if family is OLMOE:
        return "all_heads"
    if family is not GROVE_MOE:
        return "head" if family.qk_layernorm else "none"
    said = keys.config.get("qk_norm", "head")
    if said not in _QK_NORMS:
        keys.problems.append(f"qk_norm ({brief(said)}) is none of {', '.join(_QK_NORMS)}")
        return "head"
    return str(said)


def _qkv_bias(keys: Keys, family: Family) -> bool:
    """Every model of transformers 4 has one where that of transformers 5 has a key for it."""
    if family not in (QWEN2_MOE, GROVE_MOE):
        return False
    return keys.flag("qkv_bias", default=family is QWEN2_MOE)


def _moe_layers(keys: Keys, num_layers: int) -> tuple[bool, ...]:
    """Qwen3-MoE: layer i has experts unless it is listed, or i + 1 is no multiple of the step."""
    step = keys.whole("decoder_sparse_step", default=1)
    dense = keys.config.get("mlp_only_layers")
    if dense is None:
        dense = []
    if not isinstance(dense, list) or any(type(layer) is not int for layer in dense):
        keys.problems.append(
            f"mlp_only_layers ({brief(dense)}) is not a list of layer numbers; correct it"
        )
        dense = []
    if not step:
        return (True,) * num_layers
    layers = tuple(i not in dense and (i + 1) % step == 0 for i in range(num_layers))
    if num_layers and not any(layers):
        keys.problems.append(
            f"mlp_only_layers ({brief(dense)}) with decoder_sparse_step ({step}) leaves none of "
            f"num_hidden_layers ({num_layers}) with experts; use {QWEN3.class_name}"
        )
    return layers


def _with_experts(architecture: Architecture, keys: Keys, family: Family) -> Architecture:
    names = [n for n in ("num_experts", "num_local_experts") if keys.config.get(n) is not None]
    num_experts = keys.whole(names[0] if names else "num_experts")
    if len(names) == 2 and keys.config[names[0]] != keys.config[names[1]]:
        shown = " differs from ".join(f"{name} ({brief(keys.config[name])})" for name in names)
        keys.problems.append(f"{shown}; remove one of them")
    topk = keys.whole("num_experts_per_tok")
    if num_experts and topk > num_experts:
        keys.problems.append(
            f"num_experts_per_tok ({topk}) is above {names[0]} ({num_experts}); correct one of them"
        )
    if topk == 1 and family is not GROVE_MOE:
        keys.problems += _of_one_expert(keys, family)
    normalized = family is MIXTRAL or keys.flag("norm_topk_prob", default=False)
    if family is GROVE_MOE:
        normalized = not keys.flag("router_pre_softmax", default=False)
    shared = "shared_expert_intermediate_size"
    has_shared = family is QWEN2_MOE or (
        family is GROVE_MOE and keys.config.get(shared) is not None
    )
    return replace(
        architecture,
        num_experts=num_experts,
        moe_ffn_hidden_size=keys.whole(
            "moe_intermediate_size" if family in _SPARSE_STEPS else "intermediate_size"
        ),
        topk=topk,
        normalized_topk=normalized,
        shared_expert_size=keys.whole(shared) if has_shared else 0,
        shared_expert_gate=has_shared,
    )


def _of_one_expert(keys: Keys, family: Family) -> list[str]:
    """Normalised, its weight is 1 whatever the router says, and Megatron refuses to build it."""
    if family is not MIXTRAL and not keys.config.get("norm_topk_prob"):
        return []
    return [
        "num_experts_per_tok (1) is beside weights that sum to 1, of which Megatron has no router; "
        "use a model with 2 or more, or with norm_topk_prob false"
    ]


def _with_groups(architecture: Architecture, keys: Keys) -> Architecture:
    size = keys.whole("num_experts_per_group", default=int(RELEASED["num_experts_per_group"]))
    num_experts = architecture.num_experts
    if size and num_experts % size:
        keys.problems.append(
            f"num_experts ({num_experts}) is not a multiple of num_experts_per_group ({size}); "
            "correct one of them"
        )
    width = "parallel_expert_intermediate_size"
    return replace(
        architecture,
        num_groups=num_experts // size if size else 0,
        adjugate_ffn_hidden_size=keys.whole(width, default=int(RELEASED[width])),
        adjugate_scale=keys.number(
            "small_experts_weight", default=RELEASED["small_experts_weight"], or_zero=True
        ),
    )


def _rotary_base(keys: Keys) -> float:
    """``rope_theta`` of transformers 4, or of the ``rope_parameters`` of transformers 5."""
    found: dict[str, Any] = {"rope_theta": keys.config.get("rope_theta")}
    for name in ("rope_parameters", "rope_scaling"):
        rope = keys.config.get(name)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            keys.problems.append(
                f"{name} ({brief(rope)}) is neither null nor an object; correct it"
            )
            continue
        _only_default_rope(keys, name, rope)
        found[f"{name}.rope_theta"] = rope.get("rope_theta")
    found = {name: theta for name, theta in found.items() if theta is not None}
    if not found:
        keys.problems.append("rope_theta (absent) is needed; add it")
        return 0
    (first, theta), *others = found.items()
    keys.problems += [
        f"{first} ({brief(theta)}) differs from {name} ({brief(other)}); remove one of them"
        for name, other in others
        if other != theta
    ]
    # Megatron's --rotary-base is a whole number.
    if not is_number(theta) or theta < 1 or theta != int(theta):
        keys.problems.append(
            f"{first} ({brief(theta)}) is not a whole number above 0, which Megatron needs; use a "
            "model with one"
        )
        return 0
    return theta  # type: ignore[no-any-return]


def _only_default_rope(keys: Keys, name: str, rope: dict[str, Any]) -> None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        keys.problems.append(
            f"{name} ({brief(rope)}) is not of type default, the one handled; use a model with it"
        )
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        keys.problems.append(
            f"{name} ({brief(rope)}) has a partial_rotary_factor other than 1.0, the one "
            "handled; use a model with it"
        )


def _only_what_is_handled(keys: Keys, family: Family) -> None:
    keys.only("hidden_act", "silu")
    if family is MIXTRAL:
        keys.only("sliding_window", None)
    keys.only("clip_qkv", None)
    keys.only("attention_bias", False)
    keys.only("use_sliding_window", False)
    keys.only("partial_rotary_factor", None, 1, 1.0)
    keys.only("rotary_percent", None, 1, 1.0)
    _not_quantised(keys)
    _own_code(keys, family)
    kinds = keys.config.get("layer_types")
    if kinds is not None and any(kind != "full_attention" for kind in kinds):
        keys.problems.append(
            f"layer_types ({brief(kinds)}) has others than full_attention, the one "
            "handled; use a model with it"
        )


# Where a config says how its weights are quantised: transformers, compressed-tensors, MLX.
_QUANTISATION = ("quantization_config", "compression_config", "quantization")


def _not_quantised(keys: Keys) -> None:
    keys.problems += [
        f"{key} ({_quantised_as(said)}) says that the weights are quantised; {DEQUANTISE}"
        for key in _QUANTISATION
        if (said := keys.config.get(key)) is not None
    ]


def _quantised_as(said: Any) -> str:
    """The format in a few words: ``fp8 e4m3``, ``gptq 4 bits``."""
    if not isinstance(said, dict):
        return brief(said)
    words = [said.get(key) for key in ("quant_method", "quant_algo", "fmt", "format")]
    bits = [said.get(key) for key in ("bits", "w_bit", "weight_bits")]
    bits += [n for n in (4, 8) if said.get(f"load_in_{n}bit")]
    words += [f"{n} bits" for n in bits if n is not None]
    return brief(" ".join(str(word) for word in words if word)) or "no format named"


def _own_code(keys: Keys, family: Family) -> None:
    """Code beside the weights that computes something else than the family."""
    named = keys.config.get("auto_map")
    name = named.get("AutoModelForCausalLM") if isinstance(named, dict) else None
    name = name[0] if isinstance(name, list) and name else name
    if name is not None and not str(name).endswith(f".{family.class_name}"):
        keys.problems.append(
            f"auto_map ({brief(name)}) names code of its own, and not {family.class_name}; remove "
            f"auto_map if the model is a {family.class_name}"
        )


# ------------------------------------------------------------------------------------------ writing

# Keys that an upcycled model does not take over from its parent.
_OF_THE_FAMILY = frozenset(
    {
        "architectures",
        "model_type",
        "num_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "norm_topk_prob",
        "decoder_sparse_step",
        "mlp_only_layers",
        "qk_norm",
        "qkv_bias",
        "router_pre_softmax",
        "shared_expert_intermediate_size",
        *RELEASED,
    }
)
# The parent's code, and the spelling of num_experts that the released GroveMoE code does not read.
_NOT_INHERITED = frozenset({"auto_map", "num_local_experts"})

# What the released GroveMoE code (transformers 4.51) reads under no other spelling, and the keys
# that say what its literals do not.
_READ_BY_RELEASE = {"num_experts", "rope_theta", *RELEASED}

# Families that a model of another one can be upcycled to.
_CHILDREN = {
    QWEN3: {QWEN3_MOE, GROVE_MOE},
    QWEN3_MOE: {GROVE_MOE},
    QWEN2_MOE: {GROVE_MOE},
    MIXTRAL: {GROVE_MOE},
    OLMOE: {GROVE_MOE},
    GROVE_MOE: set[Family](),
    MOE_PLUS_PLUS: set[Family](),
}


def config_of(
    architecture: Architecture,
    like: dict[str, Any] | None,
    dtype: str,
    where: str = "config.json",
) -> dict[str, Any]:
    """The ``config.json`` of a model.

    ``architecture_of`` gives the same architecture back, but for ``expert_bias``, of which a config
    knows nothing.

    Args:
        architecture: the model.
        like: the config of the folder the model came from, or of the parent it was upcycled from;
            every key that says nothing else about the model is kept as it stands, and the order of
            keys. None: the keys that transformers needs.
        dtype: of the weights, such as ``bfloat16``.
        where: the name of ``like`` in errors.

    Raises:
        ValueError: ``like`` is not handled (see :func:`architecture_of`), or is the config of
            another model, with a line for each key that says so; or no config of the family can
            say what the architecture is.
    """
    if not has_config(architecture):
        raise ValueError(
            f"--grove-num-groups ({architecture.num_groups}) is beside experts without an FFN, and "
            "no Hugging Face model has both; keep Megatron's format"
        )
    if problems := family_problems(architecture):
        raise ValueError("\n".join(problems))
    family, keys = family_of(architecture), _keys_of(architecture)
    if like is None:
        config = _without_released(keys) | {"torch_dtype": dtype}
    else:
        _check_like(architecture, like, where)
        keys = _without_released(keys)
        if config_family(like, where) is family:
            config = _filled(like, keys, _READ_BY_RELEASE if architecture.is_grove else set())
        else:
            config = _filled(_inherited(like, keys), keys, set(keys))
        for key in [k for k in ("torch_dtype", "dtype") if k in like] or ["torch_dtype"]:
            config[key] = dtype
    written = architecture_of(config, where)
    assert written == replace(architecture, expert_bias=False), (written, architecture)
    return config


def _keys_of(architecture: Architecture) -> dict[str, Any]:
    """Every key that describes the model, as transformers 4 spells them."""
    a, family = architecture, family_of(architecture)
    if family is MOE_PLUS_PLUS:
        return moe_plus_plus.keys_of(a)
    keys: dict[str, Any] = {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": a.head_dim,
        "hidden_act": "silu",
        "hidden_size": a.hidden_size,
        "intermediate_size": a.ffn_hidden_size,
        "max_position_embeddings": a.max_position_embeddings,
        "num_attention_heads": a.num_attention_heads,
        "num_hidden_layers": a.num_layers,
        "num_key_value_heads": a.num_query_groups,
        "rms_norm_eps": a.norm_epsilon,
        "rope_theta": float(a.rotary_base),
        "tie_word_embeddings": a.tied_embeddings,
        "use_sliding_window": False,
        "vocab_size": a.vocab_size,
    }
    if a.num_experts:
        # No layer of this width: readers ask for the key, and the releases have this number.
        keys["intermediate_size"] = a.ffn_hidden_size or a.topk * a.moe_ffn_hidden_size
        keys |= {
            "num_experts": a.num_experts,
            "num_experts_per_tok": a.topk,
            "moe_intermediate_size": a.moe_ffn_hidden_size,
            "norm_topk_prob": a.normalized_topk,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [i for i, is_moe in enumerate(a.moe_layers) if not is_moe],
        }
    if family is QWEN2_MOE:
        keys |= {"qkv_bias": a.qkv_bias, "shared_expert_intermediate_size": a.shared_expert_size}
    elif family in (MIXTRAL, OLMOE):
        for key in ("moe_intermediate_size", "decoder_sparse_step", "mlp_only_layers"):
            del keys[key]
        keys["intermediate_size"] = a.moe_ffn_hidden_size
        del keys["use_sliding_window"]
    if family is MIXTRAL:
        del keys["norm_topk_prob"], keys["attention_bias"]
        keys["num_local_experts"] = keys.pop("num_experts")
        keys["sliding_window"] = None
    elif family is OLMOE:
        keys["clip_qkv"] = None
    return keys | _grove_keys(a)


# What the released GroveMoE code computes without a key for it, beside :data:`RELEASED`.
_RELEASE_IS: dict[str, Any] = {
    "qk_norm": "head",
    "qkv_bias": False,
    "router_pre_softmax": False,
    "shared_expert_intermediate_size": None,
}
_OF_RELEASE = RELEASED | _RELEASE_IS


def _grove_keys(architecture: Architecture) -> dict[str, Any]:
    a = architecture
    if not a.is_grove:
        return {}
    norm = "all_heads" if a.whole_qk_norm else "head" if a.qk_layernorm else "none"
    return {
        "num_experts_per_group": a.num_experts // a.num_groups,
        "parallel_expert_intermediate_size": a.adjugate_ffn_hidden_size,
        "small_experts_weight": a.adjugate_scale,
        "qk_norm": norm,
        "qkv_bias": a.qkv_bias,
        "router_pre_softmax": not a.normalized_topk,
        "shared_expert_intermediate_size": a.shared_expert_size or None,
    }


def _without_released(keys: dict[str, Any]) -> dict[str, Any]:
    """Leave out the Grove keys that say what the release does anyway."""
    own = keys.get("model_type") == GROVE_MOE.model_type
    return {k: v for k, v in keys.items() if not own or k not in _OF_RELEASE or v != _OF_RELEASE[k]}


def _check_like(architecture: Architecture, like: dict[str, Any], where: str) -> None:
    """Refuse ``like`` where it says something else of what model and parent have in common."""
    theirs, family = architecture_of(like, where), family_of(architecture)
    parent = config_family(like, where)
    if parent is not family and family not in _CHILDREN[parent]:
        line = f"the model ({family.class_name}) is not made from a {parent.class_name}"
        refuse_all(where, [f"{line}; name the config of the model, or of its parent"])
    said, wanted = _keys_of(theirs), _keys_of(architecture)
    ignored = _OF_THE_FAMILY if parent is not family else frozenset({"architectures", "model_type"})
    if parent is GROVE_MOE:
        # What its config does not say, it cannot contradict.
        ignored = ignored | {key for key in RELEASED if like.get(key) is None}
    if not (theirs.ffn_hidden_size and architecture.ffn_hidden_size):
        ignored = ignored | {"intermediate_size"}
    problems = [
        f"{_spelling(key, like)} ({brief(said[key])}) is not the model's ({brief(value)}); give "
        "the config of this model"
        for key, value in wanted.items()
        # Of MoE++ some keys mean nothing beside others.
        if key not in ignored and key in said and said[key] != value
    ]
    if problems:
        refuse_all(where, problems)


def _spelling(key: str, like: dict[str, Any]) -> str:
    """A key as ``like`` spells it."""
    other = {"num_experts": "num_local_experts", "rope_theta": "rope_parameters.rope_theta"}
    return key if key in like else other.get(key, key)


def _inherited(like: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """The parent's config in its order, with what the family says in place of what it said."""
    result = {key: value for key, value in like.items() if key not in _NOT_INHERITED}
    for key in _OF_THE_FAMILY & result.keys():
        if key in keys:
            result[key] = keys[key]
        else:
            del result[key]
    return result


def _filled(config: dict[str, Any], keys: dict[str, Any], needed: set[str]) -> dict[str, Any]:
    """A copy with those of the ``needed`` keys that ``config`` lacks, or has as null."""
    missing = {k: v for k, v in keys.items() if k in needed and config.get(k) is None}
    return config | missing


def unlike_release(architecture: Architecture) -> list[str]:
    """What the released GroveMoE code has no part for: ``key (value)``, of a model upcycled from
    another parent."""
    keys = _grove_keys(architecture)
    return [f"{key} ({keys[key]})" for key, usual in _RELEASE_IS.items() if keys[key] != usual]


def ignored_by_release(architecture: Architecture) -> list[str]:
    """What the released GroveMoE code would compute otherwise: a line per key that it ignores."""
    return [
        f"{key} ({value}) is not {_OF_RELEASE[key]}, a literal of the released modeling code, "
        "which reads no such key; leave out --no-modeling, or --write-grove-keys for other code"
        for key, value in _grove_keys(architecture).items()
        if value != _OF_RELEASE[key]
    ]
