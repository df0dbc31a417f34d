"""Plans of DeepSeek-V2 and V3 from their config.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from grove_megatron.checks.problem import Refusal
from grove_megatron.model.parameters import total_parameters
from grove_megatron.planner.pages.front import asked
from grove_megatron.planner.sizes import model_of

# What their config.json say of sizes.
V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "tie_word_embeddings": False,
    "n_group": 8,
    "topk_group": 4,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "num_nextn_predict_layers": 1,
    "hidden_act": "silu",
    "attention_bias": False,
}
V2: dict[str, Any] = V3 | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "hidden_size": 5120,
    "num_hidden_layers": 60,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "vocab_size": 102400,
    "topk_group": 3,
    "scoring_func": "softmax",
    "topk_method": "group_limited_greedy",
    "num_nextn_predict_layers": 0,
}


def of(tmp_path: Path, config: dict[str, Any]) -> Any:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return asked([], tmp_path).job


def refused(tmp_path: Path, config: dict[str, Any]) -> list[str]:
    with pytest.raises(Refusal) as error:
        of(tmp_path, config)
    return [*map(str, error.value.problems)]


@pytest.mark.parametrize(
    ("config", "total"),
    [(V3 | {"num_nextn_predict_layers": 0}, 671_026_404_352), (V2, 235_741_434_880)],
)
def test_they_have_their_published_parameters(
    tmp_path: Path, config: dict[str, Any], total: int
) -> None:
    job = of(tmp_path, config)
    model = model_of(job.args, job.parts, job.tokens)
    assert total_parameters(model).total == total
    no_class = {key: value for key, value in config.items() if key != "architectures"}
    kind = "deepseek_v3" if config["scoring_func"] == "sigmoid" else "deepseek_v2"
    again = of(tmp_path, no_class | {"model_type": kind})
    assert model_of(again.args, again.parts, again.tokens) == model


def test_the_router_and_mtp_are_theirs(tmp_path: Path) -> None:
    v3, v2 = of(tmp_path, V3), of(tmp_path, V2)
    model = model_of(v3.args, v3.parts, v3.tokens)
    assert (model.mtp_depths, model.expert_bias, model.blocks, model.blocks_chosen) == (1, 1, 8, 4)
    assert v3.args.moe_router_score_function == "sigmoid"
    model = model_of(v2.args, v2.parts, v2.tokens)
    assert (model.mtp_depths, model.expert_bias, model.blocks, model.blocks_chosen) == (0, 0, 8, 3)
    lite = of(tmp_path, V2 | {"q_lora_rank": None, "topk_method": "greedy"})
    model = model_of(lite.args, lite.parts, lite.tokens)
    assert model.latent is not None
    assert (model.latent.q_lora_rank, model.blocks) == (None, 0)


def test_what_lacks_is_said_at_once(tmp_path: Path) -> None:
    few = {"architectures": V3["architectures"], "num_hidden_layers": 61, "moe_layer_freq": 2}
    lines = refused(tmp_path, few)
    assert all("config.json: " in line for line in lines)
    for key in set(V3) - {*few, *("num_key_value_heads", "n_shared_experts", "scoring_func")}:
        optional = key in ("topk_method", "tie_word_embeddings", "num_nextn_predict_layers")
        if not optional and key not in ("hidden_act", "attention_bias"):
            assert [line for line in lines if f"{key} (absent) is needed" in line], key
    assert [line for line in lines if "moe_layer_freq (2) is not 1" in line]


@pytest.mark.parametrize("named", [{"architectures": ["DbrxForCausalLM"]}, {}])
def test_another_family_is_one_problem(tmp_path: Path, named: dict[str, Any]) -> None:
    (line,) = refused(tmp_path, {**named, "hidden_size": 8})
    assert "--hf (" in line
    assert "DeepseekV3ForCausalLM" in line
    assert "Qwen3MoeForCausalLM" in line
