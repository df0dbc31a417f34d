"""An :class:`Architecture` as Megatron flags, and Megatron's arguments as an architecture."""

from argparse import Namespace
from dataclasses import dataclass, replace
from typing import Any

from ..checks.flags import flag_of, words_of
from ..model.architecture import Architecture, layers_with_experts
from . import moe_plus_plus
from .config_keys import brief, refuse_all
from .family_rules import family_problems
from .layer_settings import settings_of_args, with_settings

# grove_megatron.arguments.LAYER_SPEC, which lives where Megatron is imported.
GROVE_LAYER_SPEC = ["grove_megatron.layer_spec", "grove_layer_spec"]


# -------------------------------------------------------------------------------------------- flags


def megatron_flags(architecture: Architecture) -> list[str]:
    """Flags that describe the model: sizes, router, Grove settings. No parallelism, no training.

    The vocabulary is not padded. Router logits are in fp32, and dropout and auxiliary losses are
    off, so that the model computes what the Hugging Face one does.
    """
    a = architecture
    valued: dict[str, Any] = {
        "num-layers": a.num_layers,
        "hidden-size": a.hidden_size,
        "num-attention-heads": a.num_attention_heads,
        "num-query-groups": a.num_query_groups,
        "kv-channels": a.head_dim,
        # Where every layer has experts nothing has this width, and Megatron's default may not fit.
        "ffn-hidden-size": a.ffn_hidden_size or a.moe_ffn_hidden_size,
        "max-position-embeddings": a.max_position_embeddings,
        "norm-epsilon": a.norm_epsilon,
        "normalization": "RMSNorm",
        "position-embedding-type": "rope",
        "rotary-base": int(a.rotary_base),
        "vocab-size": a.vocab_size,
        "padded-vocab-size": a.vocab_size,
        "attention-dropout": 0.0,
        "hidden-dropout": 0.0,
    }
    switches = ["group-query-attention", "swiglu", "disable-bias-linear"]
    if a.qk_layernorm:
        switches.append("qk-layernorm")
    if not a.tied_embeddings:
        switches.append("untie-embeddings-and-output-weights")
    if a.num_experts:
        valued |= _expert_flags(a)
        switches += _router_switches(a)
    if a.qkv_bias:
        switches.append("add-qkv-bias")
    if a.is_grove:
        valued |= {
            "grove-num-groups": a.num_groups,
            "grove-adjugate-ffn-hidden-size": a.adjugate_ffn_hidden_size,
            "grove-adjugate-scale": a.adjugate_scale,
        }
    if a.settings and not a.is_grove:
        switches.append("grove-dispatch")
    flags = [part for name, value in valued.items() for part in (f"--{name}", str(value))]
    return flags + [f"--{name}" for name in switches] + words_of(dict(a.settings))


def _expert_flags(a: Architecture) -> dict[str, Any]:
    flags: dict[str, Any] = {
        "num-experts": a.num_experts,
        "moe-router-topk": a.topk,
        "moe-ffn-hidden-size": a.moe_ffn_hidden_size,
        "moe-router-load-balancing-type": "none",
        "moe-router-dtype": "fp32",
        "moe-token-dispatcher-type": "alltoall",
    }
    if not all(a.moe_layers):
        flags["moe-layer-freq"] = f"[{','.join(str(int(is_moe)) for is_moe in a.moe_layers)}]"
    if a.shared_expert_size:
        flags["moe-shared-expert-intermediate-size"] = a.shared_expert_size
    if a.is_grove and (a.local_experts or not a.normalized_topk):
        # The parent's router, which the paper's selects otherwise than.
        flags["grove-router-scoring"] = "softmax"
    if not a.is_grove:
        # The Grove router has scores of its own and sets this field as Megatron's checks need it.
        flags["moe-router-score-function"] = "softmax"
    return flags


def _router_switches(a: Architecture) -> list[str]:
    switches = ["moe-shared-expert-gate"] if a.shared_expert_gate else []
    if not a.normalized_topk:
        switches.append("moe-router-pre-softmax")
    if a.expert_bias:
        switches.append("moe-router-enable-expert-bias")
    return switches


# ---------------------------------------------------------------------------------------- arguments


@dataclass(frozen=True)
class _Setting:
    """A Megatron argument that changes the forward pass, and the values that are handled.

    Args:
        name: its attribute.
        default: what a checkpoint that does not know it was made with.
        handled: the values a Hugging Face model can have.
        fix: what to do instead.
        flag: as it is spelled on the command line, where that is not the attribute's name.
    """

    name: str
    default: Any
    handled: tuple[Any, ...]
    fix: str
    flag: str | None = None

    def problem(self, args: Namespace) -> str | None:
        value = getattr(args, self.name, self.default)
        if value in self.handled:
            return None
        flag = self.flag or flag_of(self.name)
        handled = " or ".join(map(str, self.handled))
        return f"{flag} ({brief(value)}) is not {handled}; {self.fix}"


_NOT_IN_HF = "no model of Hugging Face that is converted has it, train without"
_OFF = (None, False)


def _absent(*names: str) -> list[_Setting]:
    """Settings that are None or False in every model that can be exported."""
    return [_Setting(name, None, _OFF, _NOT_IN_HF) for name in names]


_EVERY_MODEL = [
    _Setting("swiglu", False, (True,), "the feed-forward layers are SwiGLU, train with it"),
    _Setting("normalization", "LayerNorm", ("RMSNorm",), "the norms are RMSNorm, train with it"),
    _Setting(
        "add_bias_linear",
        True,
        (False,),
        "the linear layers have no bias, train with --disable-bias-linear",
        flag="add_bias_linear",
    ),
    _Setting(
        "position_embedding_type",
        "learned_absolute",
        ("rope",),
        "positions are rotary embeddings, train with it",
    ),
    _Setting("rotary_percent", 1.0, (1.0,), _NOT_IN_HF),
    # Megatron multiplies by what is not None; 1 changes nothing.
    _Setting("rotary_seq_len_interpolation_factor", None, (None, 1), _NOT_IN_HF),
    _Setting("rope_type", None, (None, "rope"), _NOT_IN_HF),
    _Setting("softmax_type", "vanilla", ("vanilla",), _NOT_IN_HF),
    _Setting("glu_linear_offset", 0.0, (0.0,), _NOT_IN_HF),
    _Setting("mtp_num_layers", None, (None, 0), "MTP layers are not exported, train without"),
    _Setting("layernorm_zero_centered_gamma", False, (False,), _NOT_IN_HF),
    _Setting(
        "spec",
        None,
        (None, ["local"], GROVE_LAYER_SPEC, tuple(GROVE_LAYER_SPEC)),
        "what other layers compute is not known, train with one of these",
    ),
    *_absent(
        "apply_layernorm_1p",  # the attribute in older checkpoints
        "activation_func_clamp_value",
        "apply_residual_connection_post_layernorm",
        "attention_output_gate",
        "qk_l2_norm",
        "window_size",
        "rotary_interleaved",
        "use_rope_scaling",
        "no_rope_freq",
        "multi_latent_attention",
        "experimental_attention_variant",
        "use_mup",
        "heterogeneous_layers_config_path",
        "heterogeneous_layers_config_encoded_json",
        "hybrid_layer_pattern",
        "hybrid_override_pattern",
        "is_hybrid_model",
    ),
]

# Dropout, jitter and auxiliary losses end with the training; what is here does not, or its weights
# make another model without it.
_WITH_EXPERTS = [
    _Setting("moe_router_topk_scaling_factor", None, (None, 1.0), _NOT_IN_HF),
    *_absent(
        "moe_latent_size",
        "moe_router_group_topk",
        "moe_router_topk_limited_devices",
        "moe_router_force_load_balancing",
        "moe_router_force_biased",
        "moe_apply_probs_on_input",
        "moe_mlp_glu_interleave_size",
        "moe_expert_rank_capacity_factor",
    ),
]

_DENSE = [
    _Setting("qk_layernorm", False, (True,), "queries and keys are normalized, train with it")
]
_MOE_PLUS_PLUS = [
    _Setting(
        "qk_layernorm", False, (False,), "no MoE++ model normalizes queries and keys, train without"
    )
]
# MoE++ is trained with a capacity, and its released code has none.
_NO_CAPACITY = _absent("moe_expert_capacity_factor")

# Two routers that compute what the released model does: softmax selects the same experts as sigmoid
# as long as nothing is added to the scores, and with the bias Megatron's weights are not softmax.
_SOFTMAX_ROUTER = [
    _Setting(
        "moe_router_score_function",
        "softmax",
        ("softmax",),
        "the weights of the experts are a softmax, train with it",
    ),
    _Setting(
        "moe_router_enable_expert_bias",
        False,
        (False,),
        "only --grove-num-groups with --grove-router-scoring grove has one, train without",
    ),
]
_GROVE_ROUTER = [
    _Setting("grove_router_scoring", "grove", ("grove", "softmax"), "use grove"),
]
_NORMALIZED = [
    _Setting(
        "moe_router_pre_softmax",
        False,
        (False,),
        "--grove-router-scoring grove normalizes the weights of the selected, train without",
    ),
]

# They select experts in training by something else than the scores.
_SELECTING_BALANCERS = ("sinkhorn", "quantile_balancing")


def architecture_of_args(args: Namespace) -> Architecture:
    """What the model of a Megatron checkpoint is.

    ``vocab_size`` is the number of rows of the embedding in the checkpoint, padding included: of
    the vocabulary without it, arguments know nothing (``--vocab-size`` is without the tokens a
    tokenizer adds).

    Args:
        args: the arguments in the checkpoint, as they are after Megatron's ``validate_args``. What
            an older checkpoint has no attribute for has the default.

    Raises:
        ValueError: sizes that are missing, and all settings that no model of the family has, a
            line each.
    """
    has_experts = bool(getattr(args, "num_experts", None))
    has_groups = bool(getattr(args, "grove_num_groups", None))
    is_moe_plus_plus = has_experts and moe_plus_plus.is_asked_for(args)
    settings = [*_EVERY_MODEL, *([] if has_experts else _DENSE)]
    if is_moe_plus_plus:
        settings += _MOE_PLUS_PLUS
    if has_experts:
        settings += _WITH_EXPERTS + ([] if is_moe_plus_plus else _NO_CAPACITY)
    if has_groups:
        settings += _GROVE_ROUTER
    if not has_groups or getattr(args, "grove_router_scoring", "grove") == "softmax":
        settings += _SOFTMAX_ROUTER if has_experts else []
    else:
        settings += _NORMALIZED
    problems = [line for setting in settings if (line := setting.problem(args))]
    sizes = _Sizes(args, problems)
    architecture = _dense_architecture(sizes)
    if has_experts:
        architecture = _expert_architecture(architecture, sizes)
        names = ("grove_whole_qk_norm", *(moe_plus_plus.SAYABLE if is_moe_plus_plus else ()))
        architecture = with_settings(architecture, settings_of_args(args, names))
        if is_moe_plus_plus:
            problems += moe_plus_plus.problems(args, architecture)
    elif has_groups:
        problems.append(
            f"--grove-num-groups ({args.grove_num_groups}) is set without --num-experts; set it"
        )
    problems += family_problems(architecture)
    if problems:
        refuse_all("the arguments of the Megatron checkpoint", problems)
    return architecture


@dataclass(frozen=True)
class _Sizes:
    """Reads sizes from arguments; what is missing becomes a line of ``problems`` and 0."""

    args: Namespace
    problems: list[str]

    def whole(self, *names: str) -> int:
        """The first of these arguments that is set: a whole number above 0."""
        found = [v for name in names if (v := getattr(self.args, name, None)) is not None]
        value = found[0] if found else None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            flags = " or ".join(map(flag_of, names))
            self.problems.append(
                f"{flags} ({brief(value)}) is not a whole number above 0; name a "
                "checkpoint that has it"
            )
            return 0
        return value


def _dense_architecture(sizes: _Sizes) -> Architecture:
    args = sizes.args
    layers, hidden = sizes.whole("num_layers"), sizes.whole("hidden_size")
    heads = sizes.whole("num_attention_heads")
    # Megatron reads the number of groups only beside the switch.
    grouped = getattr(args, "group_query_attention", False)
    moe_layers = _moe_layers(sizes, layers)
    return Architecture(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=sizes.whole("num_query_groups") if grouped else heads,
        head_dim=sizes.whole("kv_channels")
        if _given(args, "kv_channels")
        else hidden // (heads or 1),
        vocab_size=sizes.whole("padded_vocab_size", "vocab_size"),
        max_position_embeddings=sizes.whole("max_position_embeddings"),
        # norm_epsilon: the attribute in older checkpoints.
        norm_epsilon=getattr(args, "layernorm_epsilon", getattr(args, "norm_epsilon", 1e-5)),
        rotary_base=getattr(args, "rotary_base", 10000),
        tied_embeddings=not getattr(args, "untie_embeddings_and_output_weights", False),
        qk_layernorm=bool(getattr(args, "qk_layernorm", False)),
        qkv_bias=bool(getattr(args, "add_qkv_bias", False)),
        moe_layers=moe_layers,
        ffn_hidden_size=0 if all(moe_layers) else sizes.whole("ffn_hidden_size"),
    )


def _given(args: Namespace, name: str) -> bool:
    return getattr(args, name, None) is not None


def _moe_layers(sizes: _Sizes, num_layers: int) -> tuple[bool, ...]:
    if not getattr(sizes.args, "num_experts", None):
        return (False,) * num_layers
    frequency = getattr(sizes.args, "moe_layer_freq", 1)
    is_read = frequency > 0 if isinstance(frequency, int) else set(frequency) <= {0, 1}
    layers = layers_with_experts(frequency, num_layers) if is_read else ()
    if len(layers) != num_layers or not any(layers):
        if num_layers:
            sizes.problems.append(
                f"--moe-layer-freq ({brief(frequency)}) does not say which of "
                f"--num-layers ({num_layers}) are MoE layers, one or more; correct it"
            )
        return (True,) * num_layers
    return layers


def _expert_architecture(dense: Architecture, sizes: _Sizes) -> Architecture:
    args = sizes.args
    _check_balancing(sizes)
    num_experts, num_groups = sizes.whole("num_experts"), getattr(args, "grove_num_groups", 0) or 0
    shared = getattr(args, "moe_shared_expert_intermediate_size", None) or 0
    if num_groups and num_experts % num_groups:
        sizes.problems.append(
            f"--grove-num-groups ({num_groups}) does not divide --num-experts ({num_experts}); "
            "correct one of them"
        )
    return replace(
        dense,
        num_experts=num_experts,
        # Megatron's own default is the width of the dense layers.
        moe_ffn_hidden_size=sizes.whole("moe_ffn_hidden_size", "ffn_hidden_size"),
        topk=getattr(args, "moe_router_topk", 2),
        normalized_topk=not getattr(args, "moe_router_pre_softmax", False),
        num_groups=num_groups,
        adjugate_ffn_hidden_size=sizes.whole("grove_adjugate_ffn_hidden_size") if num_groups else 0,
        adjugate_scale=getattr(args, "grove_adjugate_scale", 0.05) if num_groups else 0.0,
        expert_bias=getattr(args, "moe_router_enable_expert_bias", False),
        shared_expert_size=shared,
        shared_expert_gate=bool(shared and getattr(args, "moe_shared_expert_gate", False)),
    )


def _check_balancing(sizes: _Sizes) -> None:
    kinds = getattr(sizes.args, "moe_router_load_balancing_type", "aux_loss")
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind in _SELECTING_BALANCERS:
            sizes.problems.append(
                f"--moe-router-load-balancing-type ({kind}) selects experts itself; {_NOT_IN_HF}"
            )
