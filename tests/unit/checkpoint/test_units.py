"""The parts of a model: all of them, once, with the names and shapes of the published models."""

from collections import Counter
from dataclasses import replace
from math import prod

import pytest
from hypothesis import given

from grove_megatron.checkpoint.units import Unit, hf_shapes, units
from grove_megatron.model.architecture import Architecture
from grove_megatron.model.families import is_buffer
from grove_megatron.model.table import EXPERT_BIAS, weights

from .architectures import (
    DENSE,
    GROVE,
    MIXED,
    MOE_PLUS_PLUS,
    NAMED,
    QWEN3_MOE,
    RELEASED,
    architectures,
)

EXPERT = {"gate_proj": (768, 2048), "up_proj": (768, 2048), "down_proj": (2048, 768)}
ADJUGATE = {"gate_proj": (128, 2048), "up_proj": (128, 2048), "down_proj": (2048, 128)}


def published(num_groups: int) -> dict[str, tuple[int, ...]]:
    """Qwen3-30B-A3B, or with groups GroveMoE, as their model cards and files have them."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (151936, 2048),
        "model.norm.weight": (2048,),
        "lm_head.weight": (151936, 2048),
    }
    for i in range(48):
        layer = f"model.layers.{i}"
        found |= {
            f"{layer}.input_layernorm.weight": (2048,),
            f"{layer}.post_attention_layernorm.weight": (2048,),
            f"{layer}.self_attn.q_proj.weight": (4096, 2048),
            f"{layer}.self_attn.k_proj.weight": (512, 2048),
            f"{layer}.self_attn.v_proj.weight": (512, 2048),
            f"{layer}.self_attn.o_proj.weight": (2048, 4096),
            f"{layer}.self_attn.q_norm.weight": (128,),
            f"{layer}.self_attn.k_norm.weight": (128,),
            f"{layer}.mlp.gate.weight": (128, 2048),
        }
        for kind, count, shapes in (
            ("experts", 128, EXPERT),
            ("chunk_experts", num_groups, ADJUGATE),
        ):
            for n in range(count):
                for projection, shape in shapes.items():
                    found[f"{layer}.mlp.{kind}.{n}.{projection}.weight"] = shape
    return found


@pytest.mark.parametrize(
    ("architecture", "num_groups", "tensors", "parameters"),
    [(RELEASED, 64, 28_083, 32_948_041_728), (QWEN3_MOE, 0, 18_867, 30_532_122_624)],
    ids=["GroveMoE", "Qwen3-30B-A3B"],
)
def test_a_published_model_has_exactly_its_tensors(
    architecture: Architecture, num_groups: int, tensors: int, parameters: int
) -> None:
    shapes = hf_shapes(architecture)
    assert shapes == published(num_groups)
    assert len(shapes) == tensors
    assert sum(map(prod, shapes.values())) == parameters


def test_moe_plus_plus_7b_has_exactly_the_tensors_of_the_authors_code() -> None:
    # Of modeling_moe_plus_plus.py @ 7f43967 with the published config: 16 experts with an FFN, 2
    # constant ones; the copy and the zero expert have no weights.
    d, f, n = 1536, 4096, 20
    expected = {"model.embed_tokens.weight": (65536, d), "lm_head.weight": (65536, d)}
    expected["model.norm.weight"] = (d,)
    for layer in (f"model.layers.{i}." for i in range(24)):
        expected |= {f"{layer}self_attn.{which}_proj.weight": (d, d) for which in "qkvo"}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            expected[f"{layer}{norm}.weight"] = (d,)
        expected[f"{layer}mlp.moe.gate.wg.weight"] = (n, d)
        expected[f"{layer}mlp.moe.gate.gate_map.weight"] = (n, n)
        for i in range(16):
            expected[f"{layer}mlp.moe.experts.experts.{i}.up_proj.weight"] = (2 * f, d)
            expected[f"{layer}mlp.moe.experts.experts.{i}.down_proj.weight"] = (d, f)
        for i in (16, 17):
            expected[f"{layer}mlp.moe.experts.experts.{i}.wg.weight"] = (2, d)
            expected[f"{layer}mlp.moe.experts.experts.{i}.constant"] = (d,)
    assert hf_shapes(MOE_PLUS_PLUS) == expected
    # Embedding and output; a layer: attention, two norms, gate and map, experts, constants.
    layer = 4 * d * d + 2 * d + n * d + n * n + 16 * 3 * d * f + 2 * 3 * d
    parameters = 2 * 65536 * d + d + 24 * layer
    assert parameters == 7_676_619_648
    assert sum(map(prod, expected.values())) == parameters


@pytest.mark.parametrize("name", NAMED)
def test_every_tensor_is_in_one_unit_and_every_unit_has_its_place(name: str) -> None:
    assert_sound(NAMED[name])


@given(architecture=architectures())
def test_any_model_falls_into_units(architecture: Architecture) -> None:
    assert_sound(architecture)


def assert_sound(architecture: Architecture) -> None:
    for stacked in (False, None) if architecture.layers_are_alike else (None,):
        found = list(units(architecture, stacked))
        names = Counter(name for unit in found for name in unit.names)
        assert set(names.values()) == {1}
        assert set(names) == set(hf_shapes(architecture))
        places = Counter((unit.key, unit.place) for unit in found)
        assert set(places.values()) == {1}
        entries: dict[str, list[Unit]] = {}
        for unit in found:
            entries.setdefault(unit.key, []).append(unit)
            assert sum(map(prod, unit.shapes)) == prod(unit.shape)
        for of_entry in entries.values():
            (shape,) = {unit.global_shape for unit in of_entry}
            # As many different places as there are: no hole.
            assert sum(prod(unit.shape) for unit in of_entry) == prod(shape)
            for unit in of_entry:
                assert len(unit.place) == len(unit.stacked)
                assert all(i < n for i, n in zip(unit.place, unit.stacked, strict=True))


def by_key(architecture: Architecture, stacked: bool | None = None) -> dict[str, Unit]:
    """The last unit of every entry."""
    return {unit.key: unit for unit in units(architecture, stacked)}


def test_alike_layers_are_slices_of_one_entry() -> None:
    unit = by_key(RELEASED)["decoder.layers.mlp.experts.experts.linear_fc1.weight"]
    assert unit.global_shape == (48, 128, 1536, 2048)
    assert unit.place == (47, 127)
    assert unit.names == (
        "model.layers.47.mlp.experts.127.gate_proj.weight",
        "model.layers.47.mlp.experts.127.up_proj.weight",
    )
    adjugate = by_key(RELEASED)["decoder.layers.mlp.adjugate_experts.experts.linear_fc2.weight"]
    assert adjugate.global_shape == (48, 64, 2048, 128)
    assert adjugate.names == ("model.layers.47.mlp.chunk_experts.63.down_proj.weight",)


def test_different_layers_are_entries_of_their_own() -> None:
    found = by_key(MIXED)
    expert = found["decoder.layers.2.mlp.experts.experts.linear_fc2.weight"]
    assert (expert.global_shape, expert.place) == ((6, 24, 20), (5,))
    dense = found["decoder.layers.1.mlp.linear_fc1.weight"]
    assert (dense.global_shape, dense.place) == ((80, 24), ())
    assert not any(key.startswith("decoder.layers.mlp") for key in found)


def test_layers_can_be_taken_for_entries_of_their_own() -> None:
    found = by_key(replace(RELEASED, moe_layers=(True, True)), False)
    unit = found["decoder.layers.1.self_attention.linear_qkv.weight"]
    assert (unit.global_shape, unit.place) == ((5120, 2048), ())


def test_only_megatrons_own_layers_have_a_second_key_for_the_norm() -> None:
    norm = "decoder.layers.pre_mlp_layernorm.weight"
    assert by_key(RELEASED)[norm].also is None
    assert by_key(QWEN3_MOE)[norm].also == "decoder.layers.mlp.linear_fc1.layer_norm_weight"
    mixed = by_key(MIXED)["decoder.layers.2.pre_mlp_layernorm.weight"]
    assert mixed.also == "decoder.layers.2.mlp.linear_fc1.layer_norm_weight"


def test_tied_embeddings_are_stored_once() -> None:
    assert DENSE.tied_embeddings
    assert "output_layer.weight" not in by_key(DENSE)
    assert "lm_head.weight" not in hf_shapes(DENSE)
    untied = replace(DENSE, tied_embeddings=False)
    assert by_key(untied)["output_layer.weight"].names == ("lm_head.weight",)


def test_the_bias_of_the_experts_is_there_where_the_model_has_one() -> None:
    bias = "model.layers.2.mlp.expert_bias"
    assert hf_shapes(GROVE)[bias] == (6,)
    assert "model.layers.1.mlp.expert_bias" not in hf_shapes(GROVE)
    assert bias not in hf_shapes(replace(GROVE, expert_bias=False))
    assert [w.name for w in weights(GROVE) if w.buffer] == [EXPERT_BIAS.name]
    assert is_buffer(bias)
    assert not any(map(is_buffer, hf_shapes(replace(GROVE, expert_bias=False))))
