"""config.json as an architecture and back: every key that says something is read, or refused."""

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grove_megatron.checkpoint.hf_config import (
    architecture_of,
    config_family,
    config_of,
    ignored_by_release,
    read_config,
)
from grove_megatron.model.architecture import Architecture
from grove_megatron.model.families import family_of, grove_moe, qwen3, qwen3_moe
from grove_megatron.model.families.family import Family

from .architectures import (
    DENSE,
    GROVE,
    MIXED,
    MOE_PLUS_PLUS,
    NAMED,
    QWEN3_MOE,
    RELEASED,
    architectures,
    with_experts,
)

# The published config of Qwen3-30B-A3B, as transformers 4 wrote it.
QWEN3_30B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# As published: the file of the code before the class, and no key of the groups.
GROVE_33B = QWEN3_30B | {
    "architectures": ["modeling_grove_moe.GroveMoeForCausalLM"],
    "model_type": "grove_moe",
    "auto_map": {"AutoModelForCausalLM": "modeling_grove_moe.GroveMoeForCausalLM"},
}
# As published (Chat-UniVi/MoE-Plus-Plus-7B), but for its auto_map.
MOE_PLUS_PLUS_7B: dict[str, Any] = {
    "architectures": ["MoeForCausalLM"],
    "model_type": "MoE++",
    "vocab_size": 65536,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "initializer_range": 0.01,
    "intermediate_size": 4096,
    "max_position_embeddings": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_hidden_layers": 24,
    "num_experts": [20],
    "moe_use_mixtral_gating": False,
    "moe_2layer_gate": False,
    "moe_use_logits_norm": True,
    "moe_gate_norm_std": 1.0,
    "moe_feature_no_mul_topk": True,
    "sliding_window": None,
    "moe_expert_interval": 1,
    "rms_norm_eps": 1e-06,
    "rotary_percent": 1.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "transformers_version": "4.33.1",
    "rope_theta": 10000,
}
GROUP_KEYS = ("num_experts_per_group", "parallel_expert_intermediate_size", "small_experts_weight")


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def problems_of(config: dict[str, Any]) -> list[str]:
    with pytest.raises(ValueError, match=r"^model:\n") as refused:
        architecture_of(config, "model")
    return [line.strip() for line in str(refused.value).splitlines()[1:]]


# -------------------------------------------------------------------------------- reading the file


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json") as refused:
        read_config(tmp_path)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b"3", b'"\xff"'])
def test_a_config_that_is_no_json_object_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="is not") as refused:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(refused.value)


def test_a_config_is_read_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GROVE_33B))
    assert list(read_config(tmp_path).items()) == list(GROVE_33B.items())


# ----------------------------------------------------------------------------------------- families


@pytest.mark.parametrize(
    ("says", "family"),
    [
        ({"architectures": ["GroveMoeForCausalLM"]}, grove_moe.GROVE_MOE),
        ({"architectures": ["modeling_grove_moe.GroveMoeForCausalLM"]}, grove_moe.GROVE_MOE),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, qwen3_moe.QWEN3_MOE),
        ({"architectures": ["Qwen3ForCausalLM"]}, qwen3.QWEN3),
        ({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3_moe"}, qwen3.QWEN3),
        ({"model_type": "grove_moe"}, grove_moe.GROVE_MOE),
        ({"model_type": "qwen3_moe", "architectures": None}, qwen3_moe.QWEN3_MOE),
        ({"model_type": "qwen3"}, qwen3.QWEN3),
    ],
)
def test_a_config_names_its_family(says: dict[str, Any], family: Family) -> None:
    assert config_family(says, "model") is family


@pytest.mark.parametrize(
    ("says", "shown"),
    [
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen3"}, "Qwen2ForCausalLM"),
        ({"architectures": ["MyQwen3ForCausalLM"]}, "MyQwen3ForCausalLM"),
        ({"model_type": "qwen2"}, "model_type (qwen2)"),
        ({}, "architectures (absent)"),
        ({"architectures": ["DeepseekV3ForCausalLM"]}, "has multi-head latent attention"),
        ({"model_type": "deepseek_v2"}, "deepseek_v2 has multi-head latent attention"),
        ({"architectures": ["GptOssForCausalLM"]}, "has attention sinks"),
    ],
)
def test_another_family_is_refused_with_those_handled(says: dict[str, Any], shown: str) -> None:
    with pytest.raises(ValueError, match=r"^model:\n") as refused:
        architecture_of(says, "model")
    for name in (shown, "GroveMoeForCausalLM", "Qwen3MoeForCausalLM", "Qwen3ForCausalLM"):
        assert name in str(refused.value)


@pytest.mark.parametrize("architecture", NAMED.values(), ids=NAMED)
def test_an_architecture_has_the_family_its_config_names(architecture: Architecture) -> None:
    config = config_of(architecture, None, "bfloat16")
    assert config_family(config, "model") is family_of(architecture)


# ------------------------------------------------------------------------------- what it says


def test_qwen3_30b_a3b_is_read() -> None:
    assert architecture_of(QWEN3_30B, "model") == QWEN3_MOE


def test_the_released_grovemoe_is_read_with_the_literals_of_its_code() -> None:
    assert architecture_of(GROVE_33B, "model") == RELEASED


def test_the_golden_model_is_read(golden_folder: Path) -> None:
    assert architecture_of(read_config(golden_folder), "model") == Architecture(
        hidden_size=64,
        num_attention_heads=4,
        num_query_groups=2,
        head_dim=16,
        vocab_size=128,
        max_position_embeddings=256,
        norm_epsilon=1e-6,
        rotary_base=1000000.0,
        tied_embeddings=False,
        qk_layernorm=True,
        moe_layers=(True, True),
        num_experts=16,
        moe_ffn_hidden_size=48,
        topk=4,
        num_groups=8,
        adjugate_ffn_hidden_size=128,
        adjugate_scale=0.05,
    )


def test_group_keys_overrule_the_release() -> None:
    config = GROVE_33B | dict(zip(GROUP_KEYS, (4, 96, 0.02), strict=True))
    found = architecture_of(config, "model")
    assert (found.num_groups, found.adjugate_ffn_hidden_size, found.adjugate_scale) == (
        32,
        96,
        0.02,
    )


def test_a_plain_moe_reads_no_group_keys() -> None:
    config = QWEN3_30B | dict(zip(GROUP_KEYS, (4, 96, 0.02), strict=True))
    assert architecture_of(config, "model") == QWEN3_MOE


@pytest.mark.parametrize(
    ("config", "says", "normalized"),
    [
        (QWEN3_30B, {"norm_topk_prob": True}, True),
        (QWEN3_30B, {"norm_topk_prob": False}, False),
        (QWEN3_30B, None, False),
        (GROVE_33B, {"norm_topk_prob": False}, True),
        (GROVE_33B, None, True),
    ],
)
def test_weights_are_normalized_as_the_code_does(
    config: dict[str, Any], says: dict[str, Any] | None, normalized: bool
) -> None:
    config = without(config, "norm_topk_prob") | (says or {})
    assert architecture_of(config, "model").normalized_topk is normalized


@pytest.mark.parametrize(
    ("says", "layers"),
    [
        ({}, "1111"),
        ({"mlp_only_layers": None, "decoder_sparse_step": None}, "1111"),
        ({"mlp_only_layers": [0, 2]}, "0101"),
        ({"decoder_sparse_step": 2}, "0101"),
        ({"decoder_sparse_step": 3}, "0010"),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, "0001"),
    ],
)
def test_layers_with_experts(says: dict[str, Any], layers: str) -> None:
    plain = without(QWEN3_30B, "mlp_only_layers", "decoder_sparse_step")
    found = architecture_of(plain | {"num_hidden_layers": 4} | says, "model")
    assert found.moe_layers == tuple(layer == "1" for layer in layers)
    assert found.ffn_hidden_size == (0 if layers == "1111" else 6144)


@pytest.mark.parametrize(
    "spelled",
    [
        {"rope_theta": 5000000},
        {"rope_theta": 5000000, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_theta": 5000000, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 5000000.0}, "rope_theta": 5000000},
        {"rope_scaling": {"rope_theta": 5000000, "rope_type": "default"}},
    ],
)
def test_the_rotary_theta_in_every_spelling(spelled: dict[str, Any]) -> None:
    config = without(QWEN3_30B, "rope_theta", "rope_scaling") | spelled
    assert architecture_of(config, "model").rotary_base == 5000000


def test_the_released_moe_plus_plus() -> None:
    assert architecture_of(MOE_PLUS_PLUS_7B, "model") == replace(MOE_PLUS_PLUS, rotary_base=10000)
    config = config_of(MOE_PLUS_PLUS, MOE_PLUS_PLUS_7B, "bfloat16")
    assert list(config.items()) == list(MOE_PLUS_PLUS_7B.items())


def test_absent_keys_of_moe_plus_plus_have_the_defaults_of_its_class() -> None:
    keys = [key for key in MOE_PLUS_PLUS_7B if key.startswith("moe_")]
    found = dict(architecture_of(without(MOE_PLUS_PLUS_7B, *keys), "model").settings)
    assert found == {
        "grove_constant_experts": 2,
        "grove_copy_experts": 1,
        "grove_gating_residual": True,
        "grove_router_gate": "two_layer",
        "grove_topk_scaled_input": True,
        "grove_zero_expert_weight": "others",
        "grove_zero_experts": 1,
    }


@pytest.mark.parametrize(
    ("says", "said"),
    [
        ({"num_experts": 20}, "num_experts (20) is not a list of one whole number"),
        ({"num_experts": [20, 16]}, "num_experts ([20, 16]) is not a list of one whole number"),
        ({"num_experts": []}, "num_experts ([]) is not a list of one whole number"),
        ({"num_experts": [4]}, "num_experts ([4]) leaves none with an FFN beside the 4 without"),
        ({"moe_expert_interval": 2}, "moe_expert_interval (2) is not 1"),
        ({"num_hidden_layers": 1}, "num_hidden_layers (1) leaves the gating residual nothing"),
        ({"moe_2layer_gate": 1}, "moe_2layer_gate (1) is not true or false"),
        ({"moe_2layer_gate": None}, "moe_2layer_gate (null) is not true or false"),
        ({"moe_gate_norm_std": 0.0}, "moe_gate_norm_std (0.0) is not a finite number above 0"),
        (
            {"head_dim": 64},
            "head_dim (64) times num_attention_heads (16) is not hidden_size (1536)",
        ),
        ({"rope_scaling": {"type": "ntk", "factor": 2.0}}, "rope_scaling ("),
        ({"rotary_percent": 0.5}, "rotary_percent (0.5) is not"),
    ],
)
def test_what_moe_plus_plus_has_not_is_named_alone(says: dict[str, Any], said: str) -> None:
    (problem,) = problems_of(MOE_PLUS_PLUS_7B | says)
    assert problem.startswith(said)
    assert "; " in problem


def test_a_deviation_that_nothing_reads_is_not_looked_at() -> None:
    says = {"moe_use_logits_norm": False, "moe_gate_norm_std": None}
    found = architecture_of(MOE_PLUS_PLUS_7B | says, "model")
    assert "grove_logit_norm" not in dict(found.settings)


KINDS = [
    dict(
        zip(("moe_use_mixtral_gating", "moe_use_logits_norm", "moe_2layer_gate"), said, strict=True)
    )
    for said in product([False, True], repeat=3)
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_the_config_of_another_moe_plus_plus_is_refused(
    kind: dict[str, bool], other: dict[str, bool]
) -> None:
    model = architecture_of(MOE_PLUS_PLUS_7B | kind, "model")
    if kind == other:
        assert config_of(model, MOE_PLUS_PLUS_7B | other, "bfloat16") == MOE_PLUS_PLUS_7B | other
        return
    with pytest.raises(ValueError, match="is not the model's") as refused:
        config_of(model, MOE_PLUS_PLUS_7B | other, "bfloat16")
    assert all(f"{key} (" in str(refused.value) for key in kind if kind[key] != other[key])


@pytest.mark.parametrize("theta", [1000000, 1000000.0])
def test_the_rotary_theta_keeps_its_type(theta: float) -> None:
    found = architecture_of(QWEN3_30B | {"rope_theta": theta}, "model").rotary_base
    assert type(found) is type(theta)


@pytest.mark.parametrize(
    ("config", "head_dim"),
    [
        (QWEN3_30B, 64),
        (QWEN3_30B | {"architectures": ["Qwen3ForCausalLM"]}, 128),
    ],
)
def test_an_absent_head_dim_is_the_default_of_the_class(
    config: dict[str, Any], head_dim: int
) -> None:
    assert architecture_of(without(config, "head_dim"), "model").head_dim == head_dim


def test_null_key_value_heads_are_as_many_as_query_heads() -> None:
    found = architecture_of(QWEN3_30B | {"num_key_value_heads": None}, "model")
    assert found.num_query_groups == 32


def test_absent_tied_embeddings_are_not_tied() -> None:
    assert not architecture_of(without(QWEN3_30B, "tie_word_embeddings"), "model").tied_embeddings
    assert architecture_of(QWEN3_30B | {"tie_word_embeddings": True}, "model").tied_embeddings


def test_dropout_is_not_of_the_weights() -> None:
    assert architecture_of(QWEN3_30B | {"attention_dropout": 0.3}, "model") == QWEN3_MOE


# -------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "key",
    [
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
    ],
)
def test_a_needed_key_that_is_absent_is_named_alone(key: str) -> None:
    assert problems_of(without(QWEN3_30B, key)) == [f"{key} (absent) is needed; add it"]


@pytest.mark.parametrize(
    ("key", "said", "shown"),
    [
        ("quantization_config", {"bits": 8}, "8 bits"),
        ("quantization_config", {"quant_method": "fp8", "fmt": "e4m3"}, "fp8 e4m3"),
        ("quantization_config", {"quant_method": "gptq", "bits": 4, "desc_act": 1}, "gptq 4 bits"),
        ("quantization_config", {"quant_method": "awq", "w_bit": 4}, "awq 4 bits"),
        (
            "quantization_config",
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_skip_modules": None},
            "bitsandbytes 4 bits",
        ),
        (
            "quantization_config",
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"] * 200}},
            },
            "compressed-tensors pack-quantized",
        ),
        ("quantization_config", {"quant_algo": "NVFP4", "producer": {}}, "NVFP4"),
        ("quantization_config", {"modules_to_not_convert": ["x"] * 500}, "no format named"),
        ("quantization_config", {}, "no format named"),
        ("quantization_config", "int8", "int8"),
        ("compression_config", {"format": "float-quantized"}, "float-quantized"),
        ("quantization", {"group_size": 64, "bits": 4}, "4 bits"),
    ],
)
def test_quantised_weights_are_one_line_with_the_way_out(key: str, said: Any, shown: str) -> None:
    assert problems_of(QWEN3_30B | {key: said}) == [
        f"{key} ({shown}) says that the weights are quantised; dequantise them first (in "
        "transformers dequantize(), then save_pretrained), or take the release that is not "
        "quantised"
    ]


@pytest.mark.parametrize("key", ["hidden_act", "layer_types", "rope_scaling", "hidden_size"])
@pytest.mark.parametrize("said", [["a\nb"] * 500, {"type": ["b"] * 500}])
def test_a_refusal_is_one_line_whatever_the_value(key: str, said: Any) -> None:
    (problem,) = problems_of(QWEN3_30B | {key: said})
    assert problem.startswith(f"{key} (")
    assert len(problem) < 250


@pytest.mark.parametrize("named", ["m.Qwen3MoeForCausalLM", ["m.Qwen3MoeForCausalLM", None]])
def test_code_of_the_same_class_is_not_refused(named: Any) -> None:
    said = {"AutoModelForCausalLM": named, "AutoConfig": "m.C"}
    assert architecture_of(QWEN3_30B | {"auto_map": said}, "model") == QWEN3_MOE


def test_a_dense_layer_needs_its_width() -> None:
    config = without(QWEN3_30B, "intermediate_size")
    assert architecture_of(config, "model") == QWEN3_MOE
    (problem,) = problems_of(config | {"mlp_only_layers": [3]})
    assert problem == "intermediate_size (absent) is needed; add it"


@pytest.mark.parametrize(
    ("says", "line"),
    [
        ({"hidden_size": "2048"}, "hidden_size (2048) is not a whole number above 0; correct it"),
        ({"hidden_size": 2048.0}, "hidden_size (2048.0) is not a whole number"),
        ({"vocab_size": 0}, "vocab_size (0) is not a whole number above 0"),
        ({"num_experts_per_tok": True}, "num_experts_per_tok (True) is not a whole number"),
        ({"rms_norm_eps": 0}, "rms_norm_eps (0) is not a finite number above 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps (nan) is not a finite number above 0"),
        ({"small_experts_weight": -0.05}, "small_experts_weight (-0.05) is not a finite number of"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings (1) is not true or false"),
        ({"hidden_act": "gelu"}, "hidden_act (gelu) is not silu, the one value handled"),
        ({"attention_bias": True}, "attention_bias (True) is not False"),
        ({"attention_bias": 0}, "attention_bias (0) is not False"),
        ({"use_sliding_window": True}, "use_sliding_window (True) is not False"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor (0.5) is not None"),
        ({"hidden_act": {"a": [0] * 999}}, "hidden_act ({'a': [0, 0, 0, 0, 0, 0, 0, 0, 0"),
        ({"auto_map": {"AutoModelForCausalLM": "m.Other"}}, "auto_map (m.Other) names code of its"),
        ({"layer_types": ["sliding_attention"]}, "layer_types (['sliding_attention']) has others"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_scaling ({'type': 'yarn'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters ({'rope_type': 'yarn'"),
        (
            {"rope_parameters": {"rope_theta": 1000000, "partial_rotary_factor": 0.5}},
            "rope_parameters ({'rope_theta': 1000000, 'partial_rotary_factor': 0.5}) has a partial",
        ),
        ({"rope_scaling": 4}, "rope_scaling (4) is neither null nor an object"),
        ({"rope_theta": 10000.5}, "rope_theta (10000.5) is not a whole number above 0, which Meg"),
        ({"rope_theta": float("inf")}, "rope_theta (inf) is not a whole number above 0"),
        ({"rope_theta": "1e6"}, "rope_theta (1e6) is not a whole number above 0"),
        (
            {"rope_parameters": {"rope_theta": 5.0}},
            "rope_theta (1000000.0) differs from rope_parameters.rope_theta (5.0)",
        ),
        ({"num_local_experts": 64}, "num_experts (128) differs from num_local_experts (64)"),
        ({"num_key_value_heads": 5}, "num_attention_heads (32) is not a multiple of num_key_value"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok (129) is above num_experts (128)"),
        (
            {"num_experts_per_group": 3},
            "num_experts (128) is not a multiple of num_experts_per_group (3)",
        ),
        ({"mlp_only_layers": 3}, "mlp_only_layers (3) is not a list of layer numbers"),
        ({"mlp_only_layers": ["3"]}, "mlp_only_layers (['3']) is not a list of layer numbers"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step (0) is not a whole number above 0"),
        ({"decoder_sparse_step": 49}, "mlp_only_layers ([]) with decoder_sparse_step (49) leaves"),
        (
            {"head_dim": None, "hidden_size": 2050},
            "hidden_size (2050) is not a multiple of num_attention_heads (32), nor is there a",
        ),
    ],
)
def test_a_value_that_is_wrong_or_not_handled_is_named_alone(
    says: dict[str, Any], line: str
) -> None:
    (problem,) = problems_of(GROVE_33B | says)
    assert problem.startswith(line)
    assert "; " in problem


def test_all_problems_are_named_at_once() -> None:
    config = without(GROVE_33B, "vocab_size") | {"attention_bias": True, "num_key_value_heads": 5}
    found = problems_of(config)
    assert len(found) == 3
    for key in ("vocab_size", "attention_bias", "num_key_value_heads"):
        assert any(key in line for line in found)


# ------------------------------------------------------------------------------------------ writing


@given(architectures(), st.sampled_from(["float32", "bfloat16"]))
def test_a_config_made_from_nothing_says_what_the_architecture_is(
    architecture: Architecture, dtype: str
) -> None:
    config = json.loads(json.dumps(config_of(architecture, None, dtype)))
    assert architecture_of(config, "model") == replace(architecture, expert_bias=False)
    assert config["torch_dtype"] == dtype


def respelled(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers 5 writes it."""
    config = without(config, "torch_dtype") | {"dtype": "float16"}
    config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), "rope_type": "default"}
    # The code of MoE++ reads a list under the one name alone.
    if "num_experts" in config and config["model_type"] != "MoE++":
        config["num_local_experts"] = config.pop("num_experts")
    return config


@given(architectures(), st.booleans(), st.randoms())
def test_the_models_own_config_is_kept(architecture: Architecture, five: bool, random: Any) -> None:
    made = config_of(architecture, None, "float16")
    items = list(((respelled(made) if five else made) | {"bos_token_id": 7}).items())
    random.shuffle(items)
    like = dict(items)
    config = config_of(architecture, like, "bfloat16")
    assert architecture_of(config, "model") == replace(architecture, expert_bias=False)
    spelling = "dtype" if five else "torch_dtype"
    kept = list((like | {spelling: "bfloat16"}).items())
    assert list(config.items())[: len(kept)] == kept
    # What the released code reads under one spelling only is added.
    added = {"num_experts", "rope_theta"} if five and architecture.is_grove else set()
    assert config.keys() - like.keys() == added


@given(
    architectures(qwen3.QWEN3),
    st.sampled_from([qwen3.QWEN3, qwen3_moe.QWEN3_MOE, grove_moe.GROVE_MOE]),
    st.booleans(),
    st.data(),
)
def test_an_upcycled_model_keeps_what_its_parent_had(
    parent: Architecture, family: Family, five: bool, data: st.DataObject
) -> None:
    child = (
        parent
        if family is qwen3.QWEN3
        else data.draw(with_experts(parent, family, qwen3_moe.QWEN3_MOE))
    )
    like = config_of(parent, None, "float16") | {"bos_token_id": 7, "auto_map": {}}
    config = config_of(child, respelled(like) if five else like, "bfloat16")
    assert architecture_of(config, "model") == replace(child, expert_bias=False)
    assert config_family(config, "model") is family
    assert config["bos_token_id"] == 7
    assert ("auto_map" in config) is (family is qwen3.QWEN3)


@given(architectures(grove_moe.GROVE_MOE), st.booleans())
def test_a_grove_model_upcycled_from_a_plain_moe(child: Architecture, five: bool) -> None:
    parent = replace(
        child,
        num_experts=3,
        moe_ffn_hidden_size=3,
        topk=2,
        # A Mixtral normalises.
        normalized_topk=not child.qk_layernorm and not child.shared_expert_size,
        num_groups=0,
        adjugate_ffn_hidden_size=0,
        adjugate_scale=0.0,
    )
    like = config_of(parent, None, "float16")
    config = config_of(child, respelled(like) if five else like, "bfloat16")
    assert architecture_of(config, "model") == replace(child, expert_bias=False)
    assert config["architectures"] == ["GroveMoeForCausalLM"]
    assert config["model_type"] == "grove_moe"
    # The released code knows the names of transformers 4 only.
    assert config["num_experts"] == child.num_experts
    assert config["rope_theta"] == child.rotary_base
    assert "num_local_experts" not in config


def test_keys_of_the_release_are_written_where_they_differ() -> None:
    assert not set(GROUP_KEYS) & config_of(RELEASED, None, "bfloat16").keys()
    other = replace(RELEASED, adjugate_scale=0.02)
    assert config_of(other, None, "bfloat16")["small_experts_weight"] == 0.02
    assert config_of(other, GROVE_33B, "bfloat16") == GROVE_33B | {"small_experts_weight": 0.02}
    said = GROVE_33B | {"num_experts_per_group": 2}
    assert config_of(RELEASED, said, "bfloat16") == said
    assert config_of(RELEASED, GROVE_33B, "bfloat16") == GROVE_33B


def test_a_config_in_both_spellings_of_the_dtype_gets_both() -> None:
    config = config_of(QWEN3_MOE, QWEN3_30B | {"dtype": "float16"}, "float32")
    assert (config["dtype"], config["torch_dtype"]) == ("float32", "float32")
    config = config_of(QWEN3_MOE, without(QWEN3_30B, "torch_dtype"), "float32")
    assert config["torch_dtype"] == "float32"
    assert "dtype" not in config


def test_the_given_config_is_not_changed() -> None:
    like = dict(QWEN3_30B)
    config_of(RELEASED, like, "float32")
    assert like == QWEN3_30B


CONTRADICTIONS: dict[str, tuple[str, Any]] = {
    "hidden_size (2048)": ("hidden_size", 1024),
    "num_hidden_layers (48)": ("moe_layers", (True,) * 47),
    "num_attention_heads (32)": ("num_attention_heads", 64),
    "num_key_value_heads (4)": ("num_query_groups", 8),
    "head_dim (128)": ("head_dim", 64),
    "vocab_size (151936)": ("vocab_size", 151937),
    "max_position_embeddings (40960)": ("max_position_embeddings", 32768),
    "rms_norm_eps (1e-06)": ("norm_epsilon", 1e-5),
    "rope_theta (1000000.0)": ("rotary_base", 10000),
    "tie_word_embeddings (False)": ("tied_embeddings", True),
}
OF_EXPERTS: dict[str, tuple[str, Any]] = {
    "num_experts (128)": ("num_experts", 64),
    "num_experts_per_tok (8)": ("topk", 4),
    "moe_intermediate_size (768)": ("moe_ffn_hidden_size", 384),
    "norm_topk_prob (True)": ("normalized_topk", False),
    "mlp_only_layers ([])": ("moe_layers", (False,) + (True,) * 47),
}


def contradictions(architecture: Architecture, like: dict[str, Any]) -> list[str]:
    with pytest.raises(ValueError, match=r"^config\.json:\n") as refused:
        config_of(architecture, like, "float32")
    return [line.strip() for line in str(refused.value).splitlines()[1:]]


@pytest.mark.parametrize(("shown", "field"), (CONTRADICTIONS | OF_EXPERTS).items())
def test_a_config_of_another_model_is_refused(shown: str, field: tuple[str, Any]) -> None:
    other = replace(QWEN3_MOE, **dict([field]))
    if not all(other.moe_layers):
        other = replace(other, ffn_hidden_size=6144)
    (problem,) = contradictions(other, QWEN3_30B)
    assert problem.startswith(f"{shown} is not the model's (")
    assert problem.endswith("; give the config of this model")


@pytest.mark.parametrize(("shown", "field"), CONTRADICTIONS.items())
def test_a_config_of_another_parent_is_refused(shown: str, field: tuple[str, Any]) -> None:
    other = replace(RELEASED, **dict([field]))
    (problem,) = contradictions(other, QWEN3_30B)
    assert problem.startswith(f"{shown} is not the model's (")


def test_group_keys_of_another_model_are_refused() -> None:
    like = GROVE_33B | dict(zip(GROUP_KEYS, (4, 96, 0.02), strict=True))
    found = contradictions(RELEASED, like)
    assert [line.split(" is not")[0] for line in found] == [
        "num_experts_per_group (4)",
        "parallel_expert_intermediate_size (96)",
        "small_experts_weight (0.02)",
    ]


def test_a_parent_has_the_width_of_dense_layers() -> None:
    like = config_of(DENSE, None, "float32")
    (problem,) = contradictions(replace(MIXED, ffn_hidden_size=41), like)
    assert problem.startswith("intermediate_size (40) is not the model's (41)")


def test_a_key_is_named_as_the_config_spells_it() -> None:
    other = replace(QWEN3_MOE, num_experts=64, rotary_base=10000)
    found = contradictions(other, respelled(without(QWEN3_30B, "rope_scaling")))
    assert [line.split(" ")[0] for line in found] == [
        "rope_parameters.rope_theta",
        "num_local_experts",
    ]


@pytest.mark.parametrize(
    ("architecture", "parent"), [(DENSE, MIXED), (DENSE, GROVE), (MIXED, GROVE)]
)
def test_a_model_is_not_made_from_a_later_one(
    architecture: Architecture, parent: Architecture
) -> None:
    (problem,) = contradictions(architecture, config_of(parent, None, "float32"))
    assert "is not made from a" in problem


def test_what_is_not_handled_in_the_given_config_is_named() -> None:
    like = QWEN3_30B | {"attention_bias": True, "rope_scaling": {"type": "yarn"}}
    assert [line.split(" ")[0] for line in contradictions(QWEN3_MOE, like)] == [
        "rope_scaling",
        "attention_bias",
    ]


def test_a_grove_model_without_normalized_weights_says_so() -> None:
    config = config_of(replace(RELEASED, normalized_topk=False), None, "bfloat16")
    assert config["router_pre_softmax"] is True
    (line,) = ignored_by_release(replace(RELEASED, normalized_topk=False))
    assert line.startswith("router_pre_softmax (True) is not False, a literal of the released")
    # The key of Qwen3-MoE's, which the released code does not read.
    read = architecture_of(config | {"norm_topk_prob": False, "router_pre_softmax": False}, "model")
    assert read.normalized_topk


@pytest.mark.parametrize(
    ("change", "begins"),
    [
        ({"num_groups": 2, "local_experts": 4}, "--grove-num-groups (2) is beside experts without"),
        ({"qkv_bias": True}, "--add-qkv-bias (True) is not False, as in every Qwen3MoeForCausalLM"),
        (
            {"qk_layernorm": False, "normalized_topk": False},
            "--moe-router-pre-softmax (True) is no",
        ),
        ({"shared_expert_size": 8}, "--qk-layernorm (True) is not False, as in every Qwen2MoeForC"),
    ],
)
def test_what_no_family_says_has_no_config(change: dict[str, Any], begins: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(begins)}"):
        config_of(replace(QWEN3_MOE, **change), None, "bfloat16")


def test_what_the_released_code_would_ignore() -> None:
    assert ignored_by_release(RELEASED) == []
    assert ignored_by_release(QWEN3_MOE) == []
    lines = ignored_by_release(
        replace(RELEASED, num_groups=32, adjugate_ffn_hidden_size=96, adjugate_scale=0.02)
    )
    assert [line.split(", a literal")[0] for line in lines] == [
        "num_experts_per_group (4) is not 2",
        "parallel_expert_intermediate_size (96) is not 128",
        "small_experts_weight (0.02) is not 0.05",
    ]


# ------------------------------------------------------------------------------------- transformers


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.Qwen3MoeConfig(
        architectures=["Qwen3MoeForCausalLM"],
        hidden_size=24,
        intermediate_size=40,
        moe_intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        num_experts=6,
        num_experts_per_tok=2,
        mlp_only_layers=[1],
        vocab_size=50,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    assert architecture_of(read_config(tmp_path), "model") == MIXED


def test_what_transformers_saves_of_a_dense_model_is_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.Qwen3Config(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        vocab_size=50,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    assert architecture_of(read_config(tmp_path), "model") == DENSE


@pytest.mark.parametrize(
    ("architecture", "like"),
    [
        (QWEN3_MOE, None),
        (MIXED, None),
        (DENSE, None),
        (MIXED, DENSE),
    ],
)
def test_transformers_loads_what_is_written(
    architecture: Architecture, like: Architecture | None, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    parent = None if like is None else respelled(config_of(like, None, "float32"))
    config = config_of(architecture, parent, "bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(loaded).__name__.removesuffix("Config") in config["architectures"][0]
    assert loaded.rope_parameters["rope_theta"] == architecture.rotary_base
    assert loaded.head_dim == architecture.head_dim
    if architecture.num_experts:
        assert loaded.num_experts == architecture.num_experts
        assert loaded.mlp_only_layers == [i for i, m in enumerate(architecture.moe_layers) if not m]
    loaded.save_pretrained(tmp_path / "again")
    assert architecture_of(read_config(tmp_path / "again"), "model") == architecture


@pytest.mark.parametrize(
    ("says", "refused"),
    [
        ({"norm_topk_prob": True}, True),
        ({"norm_topk_prob": False}, False),
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 128}, True),
    ],
)
def test_one_expert_has_no_normalised_weight(says: dict[str, Any], refused: bool) -> None:
    config = QWEN3_30B | {"num_experts_per_tok": 1} | says
    if not refused:
        assert architecture_of(config, "model").topk == 1
        return
    with pytest.raises(ValueError, match=r"num_experts_per_tok \(1\) is beside weights that sum"):
        architecture_of(config, "model")


def test_a_norm_of_another_kind_is_refused_once() -> None:
    config = config_of(RELEASED, None, "bfloat16") | {"qk_norm": "layer"}
    assert problems_of(config) == ["qk_norm (layer) is none of head, none, all_heads"]
