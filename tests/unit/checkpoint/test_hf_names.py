"""The name table, from the side of a module's parameters."""

import pytest

from grove_megatron.checkpoint.hf_names import NameTable
from grove_megatron.checkpoint.transforms import GateUp, QueryKeyValue, Replicated, Split, Transform

from .architectures import DENSE, MIXED, QWEN3_MOE, RELEASED

LAYER, HF = "decoder.layers.7", "model.layers.7"
GATE_UP = (f"{HF}.mlp.experts.11.gate_proj.weight", f"{HF}.mlp.experts.11.up_proj.weight")
FOUND: dict[str, tuple[tuple[str, ...], Transform]] = {
    "embedding.word_embeddings.weight": (("model.embed_tokens.weight",), Split(0)),
    "output_layer.weight": (("lm_head.weight",), Split(0)),
    "decoder.final_layernorm.weight": (("model.norm.weight",), Replicated()),
    f"{LAYER}.input_layernorm.weight": ((f"{HF}.input_layernorm.weight",), Replicated()),
    f"{LAYER}.self_attention.linear_qkv.layer_norm_weight": (
        (f"{HF}.input_layernorm.weight",),
        Replicated(),
    ),
    f"{LAYER}.self_attention.linear_qkv.weight": (
        tuple(f"{HF}.self_attn.{which}_proj.weight" for which in "qkv"),
        QueryKeyValue(4),
    ),
    f"{LAYER}.self_attention.q_layernorm.weight": (
        (f"{HF}.self_attn.q_norm.weight",),
        Replicated(),
    ),
    f"{LAYER}.self_attention.k_layernorm.weight": (
        (f"{HF}.self_attn.k_norm.weight",),
        Replicated(),
    ),
    f"{LAYER}.self_attention.linear_proj.weight": ((f"{HF}.self_attn.o_proj.weight",), Split(1)),
    f"{LAYER}.pre_mlp_layernorm.weight": ((f"{HF}.post_attention_layernorm.weight",), Replicated()),
    f"{LAYER}.mlp.router.weight": ((f"{HF}.mlp.gate.weight",), Replicated()),
    f"{LAYER}.mlp.experts.local_experts.11.linear_fc1.weight": (GATE_UP, GateUp()),
    f"{LAYER}.mlp.experts.linear_fc1.weight11": (GATE_UP, GateUp()),
    f"{LAYER}.mlp.experts.linear_fc2.weight3": (
        (f"{HF}.mlp.experts.3.down_proj.weight",),
        Split(1),
    ),
    f"{LAYER}.mlp.adjugate_experts.local_experts.5.linear_fc2.weight": (
        (f"{HF}.mlp.chunk_experts.5.down_proj.weight",),
        Split(1),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_parameter_is_found(name: str) -> None:
    assert NameTable(RELEASED).find(name) == FOUND[name]


@pytest.mark.parametrize(
    "name",
    [
        "decoder.layers.x.mlp.router.weight",
        f"{LAYER}.mlp.router.expert_bias",
        f"{LAYER}.mlp.router.bias",
        f"{LAYER}.mlp.experts.linear_fc3.weight0",
        f"{LAYER}.mlp.linear_fc1.weights",
        f"x{LAYER}.mlp.router.weight",
    ],
)
def test_what_is_no_parameter_of_the_model_is_not_found(name: str) -> None:
    with pytest.raises(KeyError, match="has 0 rows in the name table; it needs 1"):
        NameTable(RELEASED).find(name)


def test_adjugates_are_known_to_grove_alone() -> None:
    name = f"{LAYER}.mlp.adjugate_experts.local_experts.5.linear_fc2.weight"
    with pytest.raises(KeyError):
        NameTable(QWEN3_MOE).find(name)


def test_dense_layers_are_found_in_dense_and_in_mixed_models() -> None:
    for architecture in (DENSE, MIXED):
        names, transform = NameTable(architecture).find(f"{LAYER}.mlp.linear_fc1.weight")
        assert names == (f"{HF}.mlp.gate_proj.weight", f"{HF}.mlp.up_proj.weight")
        assert transform == GateUp()
        norm = NameTable(architecture).find(f"{LAYER}.pre_mlp_layernorm.weight")
        assert norm == ((f"{HF}.post_attention_layernorm.weight",), Replicated())


def test_a_tied_output_layer_is_a_copy_of_the_embedding() -> None:
    names, _ = NameTable(DENSE).find("output_layer.weight")
    assert names == ("model.embed_tokens.weight",)
