"""An architecture as flags that Megatron's own parser reads, and back from its arguments."""

import sys
from argparse import Namespace
from collections.abc import Callable
from copy import copy
from dataclasses import fields, replace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_layer_specs
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training.argument_utils import core_transformer_config_from_args
from megatron.training.arguments import parse_args, validate_args

import grove_megatron.runtime
from grove_megatron.arguments import LAYER_SPEC, add_grove_arguments
from grove_megatron.checkpoint import megatron_args
from grove_megatron.checkpoint.megatron_args import architecture_of_args, megatron_flags
from grove_megatron.config import GroveTransformerConfig, grove_defaults
from grove_megatron.model.architecture import Architecture

from .architectures import (
    DENSE,
    GROVE,
    MIXED,
    NAMED,
    RELEASED,
    SMALL_MOE_PLUS_PLUS,
    architectures,
)

# What a run needs beside the model.
RUN = (
    "--micro-batch-size 1 --seq-length 8 --train-iters 1 --lr 0 --tokenizer-type NullTokenizer "
    "--transformer-impl local --attention-backend unfused --no-gradient-accumulation-fusion "
    "--no-masked-softmax-fusion --no-bias-swiglu-fusion --no-rope-fusion --no-persist-layer-norm "
    "--mock-data"
)


def parsed(flags: list[str]) -> Namespace:
    """Through Megatron's own parser."""
    with mock.patch.object(sys, "argv", ["pretrain", *flags]):
        args: Namespace = parse_args(extra_args_provider=add_grove_arguments)
    return args


def validated(flags: list[str]) -> Namespace:
    """As the arguments are in a checkpoint."""
    args = parsed([*flags, *RUN.split()])
    with grove_megatron.runtime.cpu():
        validate_args(args, {})
    return args


@pytest.fixture(scope="module")
def saved() -> Callable[[Architecture], Namespace]:
    """Arguments in a checkpoint of a model, a fresh copy each time."""
    known: dict[Architecture, Namespace] = {}

    def saved(architecture: Architecture) -> Namespace:
        if architecture not in known:
            known[architecture] = validated(megatron_flags(architecture))
        return copy(known[architecture])

    return saved


Saved = Callable[[Architecture], Namespace]


def problems_of(args: Namespace) -> list[str]:
    with pytest.raises(ValueError, match="arguments of the Megatron checkpoint") as refused:
        architecture_of_args(args)
    return [line.strip() for line in str(refused.value).splitlines()[1:]]


# ----------------------------------------------------------------------------------- there and back


@settings(max_examples=30)
@given(architectures())
def test_flags_say_what_the_architecture_is(architecture: Architecture) -> None:
    assert architecture_of_args(parsed(megatron_flags(architecture))) == architecture


@pytest.mark.parametrize("architecture", NAMED.values(), ids=NAMED)
def test_validated_arguments_say_it_too(architecture: Architecture, saved: Saved) -> None:
    assert architecture_of_args(saved(architecture)) == architecture


@pytest.mark.parametrize("architecture", NAMED.values(), ids=NAMED)
def test_megatron_makes_the_model_of_the_flags(architecture: Architecture, saved: Saved) -> None:
    config = core_transformer_config_from_args(saved(architecture), GroveTransformerConfig)
    layers = get_gpt_decoder_layer_specs(config, False, "RMSNorm", qk_l2_norm=False)
    modules = [layer.submodules.mlp for layer in layers]
    found = tuple(getattr(m, "module", getattr(m, "func", m)) is MoELayer for m in modules)
    if architecture.num_experts:
        assert found == architecture.moe_layers
    assert config.kv_channels == architecture.head_dim
    assert config.num_query_groups == architecture.num_query_groups
    assert config.gated_linear_unit
    assert config.qk_layernorm is architecture.qk_layernorm
    for name, value in architecture.settings:
        assert getattr(config, name) == value
    assert config.moe_router_pre_softmax is not architecture.normalized_topk
    assert config.moe_router_enable_expert_bias is architecture.expert_bias
    assert bool(config.grove_num_groups) is architecture.is_grove


def test_a_plain_model_has_no_grove_flags() -> None:
    assert not any("grove" in flag for flag in megatron_flags(MIXED))
    assert not any("expert" in flag or "moe" in flag for flag in megatron_flags(DENSE))


# --------------------------------------------------------------------------- what arguments say


def test_the_vocabulary_is_that_of_the_weights(saved: Saved) -> None:
    args = saved(DENSE)
    args.vocab_size, args.padded_vocab_size = 50, 64
    assert architecture_of_args(args).vocab_size == 64
    args.padded_vocab_size = None
    assert architecture_of_args(args).vocab_size == 50


def test_without_the_switch_there_are_as_many_groups_as_heads(saved: Saved) -> None:
    args = saved(DENSE)
    args.group_query_attention = False
    assert architecture_of_args(args).num_query_groups == DENSE.num_attention_heads


def test_the_head_dimension_of_arguments_that_are_not_validated(saved: Saved) -> None:
    args = saved(replace(DENSE, head_dim=5))
    args.kv_channels = None
    assert architecture_of_args(args).head_dim == 6


@pytest.mark.parametrize(
    ("pattern", "layers"), [(1, "111"), (2, "101"), (3, "100"), ([0, 1, 1], "011")]
)
def test_layers_are_those_megatron_makes(pattern: Any, layers: str, saved: Saved) -> None:
    args = saved(MIXED)
    args.moe_layer_freq = pattern
    found = architecture_of_args(args)
    assert found.moe_layers == tuple(layer == "1" for layer in layers)
    assert found.ffn_hidden_size == (0 if layers == "111" else 40)


@pytest.mark.parametrize("pattern", [0, [1, 0], [0, 0, 0], [1, 2, 1]])
def test_a_pattern_that_is_none_is_refused(pattern: Any, saved: Saved) -> None:
    args = saved(MIXED)
    args.moe_layer_freq = pattern
    (problem,) = problems_of(args)
    assert problem.startswith(f"--moe-layer-freq ({pattern}) does not say which of")


def test_an_older_checkpoint_has_the_defaults(saved: Saved) -> None:
    needed = {
        *("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "kv_channels"),
        *("padded_vocab_size", "max_position_embeddings", "group_query_attention", "swiglu"),
        *("ffn_hidden_size", "normalization", "qk_layernorm", "add_bias_linear"),
        *("position_embedding_type", "num_experts", "moe_ffn_hidden_size", "moe_layer_freq"),
        *("moe_router_pre_softmax",),
    }
    args = saved(replace(MIXED, rotary_base=10000, norm_epsilon=1e-5))
    old = Namespace(**{name: value for name, value in vars(args).items() if name in needed})
    assert architecture_of_args(old) == replace(MIXED, rotary_base=10000, norm_epsilon=1e-5)
    old.norm_epsilon = 1e-6
    assert architecture_of_args(old).norm_epsilon == 1e-6


def test_softmax_scoring_computes_what_the_release_does(saved: Saved) -> None:
    args = saved(RELEASED)
    args.grove_router_scoring = "softmax"
    assert architecture_of_args(args) == RELEASED


@pytest.mark.parametrize("function", ["softmax", "sigmoid"])
def test_grove_scoring_does_not_read_megatrons_score_function(function: str, saved: Saved) -> None:
    args = saved(GROVE)
    args.moe_router_score_function = function
    assert architecture_of_args(args) == GROVE


def test_our_layer_spec_is_the_one_the_launcher_selects(saved: Saved) -> None:
    args = saved(GROVE)
    for spec in (list(LAYER_SPEC), LAYER_SPEC):
        args.spec = spec
        assert architecture_of_args(args) == GROVE


# ----------------------------------------------------------------------------- what is refused

REFUSED_OF_EVERY_MODEL: dict[str, Any] = {
    "activation_func_clamp_value": 7.0,
    "apply_residual_connection_post_layernorm": True,
    "attention_output_gate": True,
    "experimental_attention_variant": "gated_delta_net",
    "glu_linear_offset": 1.0,
    "heterogeneous_layers_config_path": "layers.json",
    "heterogeneous_layers_config_encoded_json": "{}",
    "hybrid_layer_pattern": "M*",
    "hybrid_override_pattern": "M*",
    "is_hybrid_model": True,
    "mtp_num_layers": 1,
    "multi_latent_attention": True,
    "no_rope_freq": 4,
    "normalization": "LayerNorm",
    "position_embedding_type": "yarn",
    "qk_l2_norm": True,
    "rope_type": "yarn",
    "rotary_interleaved": True,
    "rotary_percent": 0.5,
    "rotary_seq_len_interpolation_factor": 2,
    "softmax_type": "learnable",
    "spec": ["my.spec", "layer"],
    "swiglu": False,
    "use_mup": True,
    "use_rope_scaling": True,
    "window_size": (128, 0),
}
REFUSED_WITH_EXPERTS: dict[str, Any] = {
    "moe_apply_probs_on_input": True,
    "moe_expert_capacity_factor": 1.0,
    "moe_expert_rank_capacity_factor": 1.0,
    "moe_latent_size": 8,
    "moe_mlp_glu_interleave_size": 32,
    "moe_router_force_biased": 0.5,
    "moe_router_force_load_balancing": True,
    "moe_router_group_topk": 2,
    "moe_router_load_balancing_type": "sinkhorn",
    "moe_router_topk_limited_devices": 2,
    "moe_router_topk_scaling_factor": 2.5,
}


def assert_refused_alone(args: Namespace, name: str, value: Any) -> None:
    setattr(args, name, value)
    (problem,) = problems_of(args)
    assert problem.startswith(f"--{name.replace('_', '-')} ({value}) ")
    assert "; " in problem


@pytest.mark.parametrize(("name", "value"), (REFUSED_OF_EVERY_MODEL | REFUSED_WITH_EXPERTS).items())
def test_what_no_hugging_face_model_has_is_named_alone(name: str, value: Any, saved: Saved) -> None:
    assert_refused_alone(saved(GROVE), name, value)


def test_null_is_no_value_of_a_setting_that_is_on(saved: Saved) -> None:
    assert_refused_alone(saved(DENSE), "normalization", None)


@pytest.mark.parametrize(
    ("name", "spelled", "value"),
    [
        ("add_bias_linear", "add_bias_linear (True) is not False", True),
        ("layernorm_zero_centered_gamma", "--apply-layernorm-1p (True) is not False", True),
        ("apply_layernorm_1p", "--apply-layernorm-1p (True)", True),
    ],
)
def test_settings_with_another_name_on_the_command_line(
    name: str, spelled: str, value: Any, saved: Saved
) -> None:
    args = saved(DENSE)
    setattr(args, name, value)
    (problem,) = problems_of(args)
    assert problem.startswith(spelled)


@pytest.mark.parametrize(
    ("architecture", "name", "value"),
    [
        (MIXED, "moe_router_score_function", "sigmoid"),
        (MIXED, "moe_router_enable_expert_bias", True),
        (GROVE, "moe_router_pre_softmax", True),
        (GROVE, "moe_router_load_balancing_type", ["aux_loss", "quantile_balancing"]),
        (GROVE, "grove_num_groups", 4),
        (GROVE, "grove_router_scoring", "other"),
        (DENSE, "qk_layernorm", False),
    ],
)
def test_routers_that_hugging_face_does_not_have(
    architecture: Architecture, name: str, value: Any, saved: Saved
) -> None:
    args = saved(architecture)
    setattr(args, name, value)
    (problem,) = problems_of(args)
    shown = value[-1] if isinstance(value, list) else value
    assert problem.startswith(f"--{name.replace('_', '-')} ({shown}) ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("grove_zero_experts", 2),
        ("grove_copy_experts", 0),
        ("grove_constant_experts", 6),
        ("grove_gating_residual", False),
        ("grove_logit_norm", "population"),
        ("grove_logit_norm_eps", 100.0),
        ("moe_router_topk", 4),
        ("kv_channels", 4),
        ("moe_router_pre_softmax", True),
        ("moe_layer_freq", [1, 0, 1]),
        ("qk_layernorm", True),
    ],
)
def test_what_no_moe_plus_plus_has_is_named_alone(name: str, value: Any, saved: Saved) -> None:
    args = saved(SMALL_MOE_PLUS_PLUS)
    args.grove_adjugate_ffn_hidden_size = 8
    assert_refused_alone(args, name, value)


@pytest.mark.parametrize(
    ("change", "begins"),
    [
        ({"add_qkv_bias": True}, ["--add-qkv-bias (True) is not False, as in every Qwen3MoeF"]),
        (
            {"qk_layernorm": False, "add_qkv_bias": True},
            ["--add-qkv-bias (True)", "--moe-router-pre-softmax (True)", "--moe-layer-freq leaves"],
        ),
        (
            {"moe_shared_expert_intermediate_size": 16},
            ["--qk-layernorm (True) is not False", "--moe-shared-expert-gate (False) is not True"],
        ),
    ],
)
def test_what_no_model_of_a_family_has_is_named_together(
    change: dict[str, Any], begins: list[str], saved: Saved
) -> None:
    args = saved(MIXED)
    for name, value in change.items():
        setattr(args, name, value)
    found = problems_of(args)
    assert len(found) == len(begins)
    assert all(line.startswith(begin) for line, begin in zip(found, begins, strict=True))


def test_a_gate_without_a_shared_expert_is_none(saved: Saved) -> None:
    """Megatron builds it without a word."""
    args = saved(MIXED)
    args.moe_shared_expert_gate = True
    assert architecture_of_args(args) == MIXED


def test_scaled_input_needs_that_zero_experts_give_away_their_weight(saved: Saved) -> None:
    args = saved(SMALL_MOE_PLUS_PLUS)
    args.grove_zero_expert_weight = "own"
    (problem,) = problems_of(args)
    assert "--grove-topk-scaled-input (True) is beside --grove-zero-expert-weight (own)" in problem


def test_what_trains_a_moe_plus_plus_is_not_of_the_model(saved: Saved) -> None:
    args = saved(SMALL_MOE_PLUS_PLUS)
    args.moe_expert_capacity_factor = 1.1
    args.grove_heterogeneous_loss_coeff, args.grove_local_tau = 0.01, 0.5
    assert architecture_of_args(args) == SMALL_MOE_PLUS_PLUS


def test_softmax_scoring_with_a_bias_is_not_the_release(saved: Saved) -> None:
    args = saved(GROVE)
    args.grove_router_scoring, args.moe_router_score_function = "softmax", "sigmoid"
    assert [line.split(" ")[0] for line in problems_of(args)] == [
        "--moe-router-score-function",
        "--moe-router-enable-expert-bias",
    ]


def test_experts_are_not_asked_for_where_there_are_none(saved: Saved) -> None:
    args = saved(DENSE)
    of_routers = {"moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True}
    for name, value in (REFUSED_WITH_EXPERTS | of_routers).items():
        setattr(args, name, value)
    assert architecture_of_args(args) == DENSE


def test_groups_without_experts_are_refused(saved: Saved) -> None:
    args = saved(DENSE)
    args.grove_num_groups = 2
    (problem,) = problems_of(args)
    assert problem.startswith("--grove-num-groups (2) is set without --num-experts")


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("num_layers", "--num-layers"),
        ("hidden_size", "--hidden-size"),
        ("num_attention_heads", "--num-attention-heads"),
        ("num_query_groups", "--num-query-groups"),
        ("max_position_embeddings", "--max-position-embeddings"),
        ("ffn_hidden_size", "--ffn-hidden-size"),
        ("grove_adjugate_ffn_hidden_size", "--grove-adjugate-ffn-hidden-size"),
    ],
)
def test_a_size_that_is_missing_is_named_alone(name: str, flags: str, saved: Saved) -> None:
    args = saved(GROVE)
    delattr(args, name)
    (problem,) = problems_of(args)
    assert problem.startswith(f"{flags} (None) is not a whole number above 0")


def test_all_problems_are_named_at_once(saved: Saved) -> None:
    args = saved(GROVE)
    refused = REFUSED_OF_EVERY_MODEL | REFUSED_WITH_EXPERTS
    for name, value in refused.items():
        setattr(args, name, value)
    del args.hidden_size
    assert len(problems_of(args)) == len(refused) + 1


# -------------------------------------------------------------------------------- nothing forgotten

# Fields that are read, not only checked.
READ = {
    *("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size"),
    *("kv_channels", "layernorm_epsilon", "num_moe_experts", "moe_layer_freq"),
    *("moe_ffn_hidden_size", "moe_router_topk", "moe_router_pre_softmax"),
    *("moe_router_enable_expert_bias", "moe_router_load_balancing_type", "add_qkv_bias"),
    *("moe_shared_expert_intermediate_size", "moe_shared_expert_gate", "qk_layernorm"),
}
# Fields that no command line sets (by that name).
NOT_ARGUMENTS = {
    *("activation_func", "gated_linear_unit"),  # --swiglu
    *("softmax_scale", "moe_token_dropping", "heterogeneous_block_specs", "quant_recipe"),
    *("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"),
}
# Fields that matter only beside another one, which is refused.
BESIDE_A_REFUSED_ONE = (
    *("mtp_", "dsa_", "linear_", "mup_", "mamba_", "window_attn_skip_freq", "mrope_section"),
    *("experimental_attention_variant_loss", "use_mamba", "hetereogenous_"),
    *("moe_router_num_groups", "moe_shared_expert_", "use_grouped_gemm_for_shared_expert"),
    *("moe_pad_expert_input_to_capacity", "moe_token_drop_policy", "moe_router_quantile_"),
)
# Training, memory, speed, number formats, and terms that cancel out.
NOT_OF_THE_MODEL = (
    *(
        "fp8",
        "fp4",
        "fp32_residual",
        "tp_only_amax_red",
        "first_last_layers_bf16",
        "num_layers_at_",
    ),
    *("use_kitchen", "kitchen_", "transformer_impl", "attention_backend", "flash_", "use_te_"),
    *("recompute_", "distribute_saved", "cuda_graph", "enable_cuda_graph", "external_cuda_graph"),
    *("inference_", "use_inference", "nccl_all_reduce", "symmetric_ar_type", "batch_invariant"),
    *("init_method", "output_layer_init", "embedding_init", "init_model_with"),
    *("hidden_dropout", "attention_dropout", "moe_input_jitter_eps", "moe_aux_loss", "moe_z_loss"),
    *("qk_clip", "log_max_attention_logit", "test_mode", "calculate_per_token_loss"),
    *("pipeline_model_parallel_layout", "account_for_", "cp_comm_type", "config_logger_dir"),
    *("bias_", "masked_softmax", "persist_", "memory_efficient", "apply_rope_fusion", "fused_"),
    *("use_fused_weighted", "use_transformer_engine_op_fuser", "activation_func_fp8", "disable_"),
    # The scale of the logits is taken back in the softmax.
    *("apply_query_key_layer_scaling", "attention_softmax_in_fp32"),
    *("high_priority_a2a", "moe_enable_routing_replay", "moe_router_padding", "moe_router_dtype"),
    *("moe_router_bias_update_rate", "use_grouped_gemm_for_dense", "moe_grouped_gemm"),
    *("moe_single_grouped", "moe_token_dispatcher", "moe_enable_deepep", "moe_flex_dispatcher"),
    *("moe_permute", "moe_hybridep", "moe_deepep", "moe_ncclep", "moe_per_layer_logging"),
    *("moe_pad_experts_for_cuda_graph", "moe_layer_recompute", "moe_router_fusion"),
    *("moe_paged_stash", "clone_scatter", "mlp_chunks", "fine_grained_", "offload_", "min_offload"),
    *("delay_offload", "delta_offload", "activation_offload"),
)


TABLES = (
    "_EVERY_MODEL",
    "_DENSE",
    "_MOE_PLUS_PLUS",
    "_WITH_EXPERTS",
    "_NO_CAPACITY",
    "_SOFTMAX_ROUTER",
    "_GROVE_ROUTER",
    "_NORMALIZED",
)


def test_every_field_of_megatrons_configuration_has_been_looked_at() -> None:
    inherited = {f.name for f in fields(ModelParallelConfig)}
    own = {f.name for f in fields(TransformerConfig)} - inherited
    checked = {setting.name for table in TABLES for setting in getattr(megatron_args, table)}
    passed_over = BESIDE_A_REFUSED_ONE + NOT_OF_THE_MODEL
    unknown = own - checked - READ - NOT_ARGUMENTS
    assert sorted(name for name in unknown if not name.startswith(passed_over)) == []


def test_defaults_of_absent_arguments_are_megatrons() -> None:
    args = parsed("--num-layers 1 --hidden-size 8 --num-attention-heads 1".split())
    for table in TABLES:
        for setting in getattr(megatron_args, table):
            default = getattr(args, setting.name, None)
            # None and False are the same to a setting that is off.
            assert setting.default == default or {setting.default, default} == {None, False}, (
                setting.name
            )
    defaults = grove_defaults()
    assert (args.rotary_base, args.layernorm_epsilon, args.moe_router_topk) == (10000, 1e-5, 2)
    assert (defaults["grove_adjugate_scale"], defaults["grove_router_scoring"]) == (0.05, "grove")
