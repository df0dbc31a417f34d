"""What a new row reaches: counts, ranks, entries of checkpoints, names of parameters."""

from collections import Counter
from dataclasses import replace

import pytest

from grove_megatron.checkpoint.hf_names import NameTable
from grove_megatron.checkpoint.transforms import Replicated
from grove_megatron.checkpoint.units import hf_shapes, units
from grove_megatron.model.architecture import layers_with_experts
from grove_megatron.model.families import family_of, named_weights
from grove_megatron.model.parameters import total_parameters
from grove_megatron.model.table import held, weights
from grove_megatron.model.weights import Split, Weight
from grove_megatron.planner.inputs import Layout
from grove_megatron.planner.parameters import rank_parameters
from tests.unit.checkpoint.architectures import DENSE, GROVE, MIXED, NAMED

# As a part of a router would hand them over: [E], [E, H], and one of every expert.
BIAS = Weight("mlp.router.bias", ("E",), Split.WHOLE, ("mlp.gate.bias",))
NOISE = Weight("mlp.router.noise_weight", ("EH",), Split.WHOLE, ("mlp.noise.weight",))
SCALE = Weight(
    "mlp.experts.experts.scale",
    ("I",),
    Split.ROWS,
    ("mlp.experts.{index}.scale",),
    stack="E",
    modules=("mlp.experts.local_experts.{index}.scale",),
)
PLAIN = replace(MIXED, num_experts=8)
EXTENDED = replace(PLAIN, part_weights=(BIAS, NOISE, SCALE))


def test_a_row_is_counted_in_the_layers_that_have_it_and_on_the_ranks_that_hold_it() -> None:
    plain, extended = total_parameters(PLAIN), total_parameters(EXTENDED)
    # MIXED: 2 of 3 layers have experts; H 24, I 20.
    assert extended.dense - plain.dense == 2 * (8 + 8 * 24)
    assert extended.experts - plain.experts == 2 * 8 * 20
    assert extended.adjugates == plain.adjugates
    layout = Layout(tensor=2, expert=4, expert_tensor=2, world=8)
    (before,), (after,) = (rank_parameters(model, layout) for model in (PLAIN, EXTENDED))
    assert after.dense - before.dense == 2 * (8 + 8 * 24)
    assert after.experts - before.experts == 2 * 8 * 20 // 8


def test_a_row_is_an_entry_of_the_checkpoint() -> None:
    new = {unit.key: unit for unit in units(EXTENDED) if unit not in set(units(PLAIN))}
    shapes = {"router.bias": (8,), "router.noise_weight": (8, 24), "experts.experts.scale": (8, 20)}
    assert {key: unit.global_shape for key, unit in new.items()} == {
        f"decoder.layers.{layer}.mlp.{name}": shape
        for layer in (0, 2)
        for name, shape in shapes.items()
    }
    layers = [f"model.layers.{layer}.mlp." for layer in (0, 2)]
    assert hf_shapes(EXTENDED).keys() - hf_shapes(PLAIN).keys() == {
        *(f"{layer}{name}" for layer in layers for name in ("gate.bias", "noise.weight")),
        *(f"{layer}experts.{expert}.scale" for layer in layers for expert in range(8)),
    }


def test_a_row_is_found_by_the_name_of_its_parameter() -> None:
    table = NameTable(EXTENDED)
    found = table.find("decoder.layers.2.mlp.router.noise_weight")
    assert found == (("model.layers.2.mlp.noise.weight",), Replicated())
    names, _ = table.find("decoder.layers.0.mlp.experts.local_experts.5.scale")
    assert names == ("model.layers.0.mlp.experts.5.scale",)


def test_weights_without_a_name_in_the_family_are_refused_all_at_once() -> None:
    nameless = replace(PLAIN, part_weights=(replace(NOISE, hf=()),), shared_expert_size=4)
    with pytest.raises(ValueError, match="have no names in the family Qwen2Moe") as refused:
        list(units(nameless))
    for name in ("mlp.router.noise_weight", "self_attention.q_layernorm.weight"):
        assert name in str(refused.value)
    # The planner asks for no names.
    assert total_parameters(nameless).dense > total_parameters(PLAIN).dense


@pytest.mark.parametrize("name", NAMED)
def test_a_family_names_the_weights_of_its_models_and_no_others(name: str) -> None:
    model = replace(NAMED[name], tied_embeddings=False)
    named = set(family_of(model).names)
    if model.is_grove:
        # Of which parent it is.
        is_absent = {
            "q_layernorm": not model.qk_layernorm,
            "k_layernorm": not model.qk_layernorm,
            "linear_qkv.bias": not model.qkv_bias,
            "shared_experts": not model.shared_expert_size,
        }
        named = {n for n in named if not any(part in n for part, no in is_absent.items() if no)}
    if model.local_experts:
        # One of its two gates.
        of_gates = {"mlp.router.weight"} | {n for n in named if "gate_two_layer" in n}
        assert {w.name for w in weights(model)} - of_gates == named - of_gates
        return
    model = replace(model, expert_bias="mlp.router.expert_bias" in named)
    if "mlp.linear_fc1.weight" in named:
        layers = (bool(model.num_experts), False)
        model = replace(model, moe_layers=layers, ffn_hidden_size=40)
    assert {weight.name for weight in weights(model)} == named


def test_tied_the_output_layer_is_named_as_the_embedding() -> None:
    assert DENSE.tied_embeddings
    for model, name in (
        (DENSE, "model.embed_tokens.weight"),
        (replace(DENSE, tied_embeddings=False), "lm_head.weight"),
    ):
        (output,) = (w for w in named_weights(model) if w.place == "output")
        assert output.hf == (name,)


def test_a_part_holds_each_kind_as_often_as_it_has_such_a_layer() -> None:
    model = replace(GROVE, mtp_depths=2, mtp_modules=2)
    nothing = {"embedding": False, "norm": False, "output": False, "mtp": False}
    found = Counter(weight.name for weight, _ in held(model, [0, 1, 2], **nothing))
    assert found["self_attention.linear_qkv.weight"] == 3
    assert (found["mlp.router.weight"], found["mlp.linear_fc1.weight"]) == (2, 1)
    assert not {"embedding.word_embeddings.weight", "output_layer.weight"} & found.keys()
    mtp = Counter(weight.name for weight, _ in held(model, [], **nothing | {"mtp": True}))
    # Its layers are like the decoder's last, which has experts.
    assert (mtp["eh_proj.weight"], mtp["mlp.router.weight"]) == (2, 2)
    assert "mlp.linear_fc1.weight" not in mtp


@pytest.mark.parametrize(
    ("frequency", "layers"), [(1, "1111"), (2, "1010"), (3, "1001"), ([0, 1, 1, 0], "0110")]
)
def test_layers_with_experts(frequency: int | list[int], layers: str) -> None:
    found = layers_with_experts(frequency, 4)
    assert found == tuple(layer == "1" for layer in layers)


def test_as_many_layers_as_are_said_to_have_experts_or_not() -> None:
    assert replace(DENSE, moe_layers=(False,) * 5).num_layers == 5


@pytest.mark.parametrize(
    ("held", "in_files"),
    [
        ("m.0.mlp.gate.weight", "m.0.block_sparse_moe.gate.weight"),
        ("m.0.mlp.experts.3.up_proj.weight", "m.0.block_sparse_moe.experts.3.w3.weight"),
        # What is none of the model's keeps the name that it has.
        ("m.0.mlp.gate_proj.weight", "m.0.mlp.gate_proj.weight"),
        ("m.0.mlp.chunk_experts.3.up_proj.weight", "m.0.mlp.chunk_experts.3.up_proj.weight"),
    ],
)
def test_files_of_mixtral_have_names_of_their_own(held: str, in_files: str) -> None:
    assert family_of(NAMED["Mixtral-8x7B"]).file_name(held) == in_files
