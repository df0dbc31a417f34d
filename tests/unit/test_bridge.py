"""The bridge to Megatron-Bridge, as far as it is data; its code is run in tests/multirank."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import MISSING, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grove_megatron.bridge import installed, names, register
from grove_megatron.bridge.settings import (
    architecture_of_provider,
    hf_config_of,
    provider_settings,
)
from grove_megatron.checkpoint.hf_config import RELEASED as RELEASED_KEYS
from grove_megatron.checkpoint.hf_config import architecture_of, unlike_release
from grove_megatron.checkpoint.units import hf_shapes
from grove_megatron.config import GroveTransformerConfig
from grove_megatron.model.architecture import Architecture
from grove_megatron.model.families.grove_moe import GROVE_MOE
from tests.unit.checkpoint.architectures import GROVE, RELEASED, architectures

# ------------------------------------------------------------------------------------- installation


def python(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_bridge_imports_nothing(subprocess_environment: dict[str, str]) -> None:
    code = "import sys, grove_megatron.bridge; print(*sys.modules)"
    loaded = python(code, subprocess_environment).split()
    assert "grove_megatron.bridge" in loaded
    roots = {name.split(".")[0] for name in loaded}
    assert not {"torch", "megatron", "transformers", "transformer_engine"} & roots


needs_absence = pytest.mark.skipif(
    installed.bridge_version() is not None, reason="megatron-bridge is installed"
)


@needs_absence
@pytest.mark.parametrize("start", ["call", "plugin"])
def test_what_is_missing_is_named_with_the_fix(
    start: str, subprocess_environment: dict[str, str]
) -> None:
    if start == "call":
        with pytest.raises(ImportError) as caught:
            register()
        message = str(caught.value)
    else:
        code = (
            "try:\n    import grove_megatron.bridge.plugin\nexcept ImportError as e:\n    print(e)"
        )
        message = python(code, subprocess_environment)
    assert "megatron-bridge (not installed) is not in the range (<0.7,>=0.6)" in message
    assert "pip install 'megatron-bridge<0.7,>=0.6'" in message
    assert "transformer_engine (not installed) is needed by every import" in message


@pytest.mark.parametrize(
    ("version", "fits"), [("0.5.1", False), ("0.6.0", True), ("0.6.2", True), ("0.7.0", False)]
)
def test_the_version_is_read_without_an_import(
    version: str, fits: bool, tmp_path: Path, subprocess_environment: dict[str, str]
) -> None:
    folder = tmp_path / "megatron" / "bridge"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')\n")
    (folder / "package_info.py").write_text(f"__version__ = {version!r}\n")
    environment = dict(subprocess_environment)
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    code = (
        "from grove_megatron.bridge import installed as i; import json; "
        "print(json.dumps([i.bridge_version(), i.problems()]))"
    )
    found, problems = json.loads(python(code, environment))
    assert found == version
    lines = [line for line in problems if line.startswith(f"megatron-bridge ({version}) is not in")]
    assert len(lines) == (0 if fits else 1)


# -------------------------------------------------------------------------------------------- table

LAYER, HF = "decoder.layers.*", "model.layers.*"


def swiglu(megatron: str, hf: str) -> dict[str, tuple[str, ...]]:
    first, second = (megatron.replace("FC", f"linear_fc{n}") for n in (1, 2))
    return {
        first: ("gated", f"{hf}.gate_proj.weight", f"{hf}.up_proj.weight"),
        second: ("auto", f"{hf}.down_proj.weight"),
    }


# Written out: the table itself is derived.
TABLE: dict[str, tuple[str, ...]] = {
    "embedding.word_embeddings.weight": ("auto", "model.embed_tokens.weight"),
    "output_layer.weight": ("auto", "lm_head.weight"),
    "decoder.final_layernorm.weight": ("replicated", "model.norm.weight"),
    f"{LAYER}.input_layernorm.weight": ("replicated", f"{HF}.input_layernorm.weight"),
    f"{LAYER}.self_attention.linear_qkv.layer_norm_weight": (
        "replicated",
        f"{HF}.input_layernorm.weight",
    ),
    f"{LAYER}.self_attention.linear_qkv.weight": (
        "qkv",
        f"{HF}.self_attn.q_proj.weight",
        f"{HF}.self_attn.k_proj.weight",
        f"{HF}.self_attn.v_proj.weight",
    ),
    f"{LAYER}.self_attention.q_layernorm.weight": ("replicated", f"{HF}.self_attn.q_norm.weight"),
    f"{LAYER}.self_attention.k_layernorm.weight": ("replicated", f"{HF}.self_attn.k_norm.weight"),
    f"{LAYER}.self_attention.linear_proj.weight": ("auto", f"{HF}.self_attn.o_proj.weight"),
    f"{LAYER}.pre_mlp_layernorm.weight": ("replicated", f"{HF}.post_attention_layernorm.weight"),
    f"{LAYER}.mlp.linear_fc1.layer_norm_weight": (
        "replicated",
        f"{HF}.post_attention_layernorm.weight",
    ),
    f"{LAYER}.mlp.router.weight": ("replicated", f"{HF}.mlp.gate.weight"),
    f"{LAYER}.mlp.router.expert_bias": ("replicated", f"{HF}.mlp.expert_bias"),
    **swiglu(f"{LAYER}.mlp.FC.weight", f"{HF}.mlp"),
    **swiglu(f"{LAYER}.mlp.experts.FC.weight*", f"{HF}.mlp.experts.*"),
    **swiglu(f"{LAYER}.mlp.experts.local_experts.*.FC.weight", f"{HF}.mlp.experts.*"),
    **swiglu(f"{LAYER}.mlp.adjugate_experts.FC.weight*", f"{HF}.mlp.chunk_experts.*"),
    **swiglu(
        f"{LAYER}.mlp.adjugate_experts.local_experts.*.FC.weight", f"{HF}.mlp.chunk_experts.*"
    ),
}


def test_the_table_is_the_one_written_out_here() -> None:
    assert {row.megatron: (row.kind, *row.hf) for row in names.table()} == TABLE
    assert len(names.table()) == len(TABLE)
    for row in names.table():
        assert row.of_adjugates == ("adjugate_experts" in row.megatron)


def te_parameters(a: Architecture) -> list[str]:
    """Parameters and buffers of a model with TransformerEngine on one rank."""
    found = ["embedding.word_embeddings.weight", "decoder.final_layernorm.weight"]
    found += [] if a.tied_embeddings else ["output_layer.weight"]
    for i, is_moe in enumerate(a.moe_layers):
        layer = f"decoder.layers.{i}"
        found += [
            f"{layer}.self_attention.{name}weight"
            for name in ("linear_qkv.layer_norm_", "linear_qkv.", "linear_proj.")
        ]
        found += [f"{layer}.self_attention.{w}_layernorm.weight" for w in "qk"]
        if not is_moe:
            found += [f"{layer}.mlp.linear_fc1.layer_norm_weight"]
            found += [f"{layer}.mlp.linear_fc{n}.weight" for n in (1, 2)]
            continue
        found += [f"{layer}.pre_mlp_layernorm.weight", f"{layer}.mlp.router.weight"]
        found += [f"{layer}.mlp.router.expert_bias"] if a.expert_bias else []
        for kind, count in (("experts", a.num_experts), ("adjugate_experts", a.num_groups)):
            found += [
                f"{layer}.mlp.{kind}.linear_fc{n}.weight{e}" for n in (1, 2) for e in range(count)
            ]
    return found


def produced(parameters: list[str]) -> Counter[str]:
    """Hugging Face tensors of parameters, each of which has exactly one row."""
    found: Counter[str] = Counter()
    for parameter in parameters:
        matches = [m for row in names.table() if (m := row.hf_names(parameter)) is not None]
        assert len(matches) == 1, parameter
        found.update(matches[0])
    return found


@pytest.mark.parametrize("a", [GROVE, replace(GROVE, tied_embeddings=False, expert_bias=False)])
def test_every_parameter_of_transformer_engine_has_a_row_and_every_tensor_comes_once(
    a: Architecture,
) -> None:
    assert produced(te_parameters(a)) == Counter(hf_shapes(a).keys())


@pytest.mark.parametrize(
    "name",
    [
        "decoder.layers.0.mlp.experts.linear_fc1.weight",
        "decoder.layers.0.mlp.adjugate_experts.linear_fc2.weight",
        "decoder.layers.0.mlp.shared_experts.linear_fc1.weight",
        "decoder.layers.0.mlp.router.qb_beta",
        "mtp.layers.0.enorm.weight",
        "xdecoder.layers.0.mlp.router.weight",
    ],
)
def test_what_cannot_be_converted_has_no_row(name: str) -> None:
    known = "decoder.layers.0.mlp.router.weight"
    assert names.without_row([known, name, known]) == [name]


# ------------------------------------------------------------------------------ groups and EP ranks


@st.composite
def groups_on_ranks(draw: Any) -> tuple[int, int]:
    ep_size = draw(st.integers(1, 8))
    return ep_size * draw(st.integers(1, 12)), ep_size


@given(groups_on_ranks())
def test_numbers_on_ranks_are_all_numbers_once(sizes: tuple[int, int]) -> None:
    num_groups, ep_size = sizes
    count = names.groups_per_rank(num_groups, ep_size)
    found = [
        names.global_group_index(i, ep_rank=rank, ep_size=ep_size, num_groups=num_groups)
        for rank in range(ep_size)
        for i in range(count)
    ]
    assert found == list(range(num_groups))


@given(groups_on_ranks(), st.data())
def test_a_name_becomes_global_and_is_in_its_place_among_those_of_all_ranks(
    sizes: tuple[int, int], data: Any
) -> None:
    num_groups, ep_size = sizes
    rank = data.draw(st.integers(0, ep_size - 1))
    local = data.draw(st.integers(0, num_groups // ep_size - 1))
    layer, index = names.globally(
        ("7", str(local)), ep_rank=rank, ep_size=ep_size, num_groups=num_groups
    )
    assert (layer, int(index)) == ("7", rank * (num_groups // ep_size) + local)
    name = f"model.layers.{layer}.mlp.chunk_experts.{index}.up_proj.weight"
    on_ranks = names.names_on_ranks(name, ep_size=ep_size, num_groups=num_groups)
    assert on_ranks[rank] == name
    assert len(set(on_ranks)) == ep_size
    for k, other in enumerate(on_ranks):
        number = k * (num_groups // ep_size) + local
        assert other == f"model.layers.7.mlp.chunk_experts.{number}.up_proj.weight"


def test_one_rank_needs_no_number_of_groups_and_several_do() -> None:
    numbers = ("0", "5")
    assert names.globally(numbers, ep_rank=0, ep_size=1, num_groups=None) == numbers
    with pytest.raises(ValueError, match=r"num_groups \(None\) must be known"):
        names.globally(numbers, ep_rank=0, ep_size=2, num_groups=None)


def test_experts_are_not_taken_for_adjugates() -> None:
    name = "model.layers.0.mlp.experts.3.up_proj.weight"
    with pytest.raises(ValueError, match="has no number after chunk_experts"):
        names.names_on_ranks(name, ep_size=2, num_groups=8)


@pytest.mark.parametrize("local", [-1, 4])
def test_an_adjugate_of_another_rank_is_refused(local: int) -> None:
    with pytest.raises(ValueError, match=r"is not one of the 4 of a rank"):
        names.global_group_index(local, ep_rank=0, ep_size=2, num_groups=8)


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"size \(3\) does not divide grove_num_groups \(8\)"):
        names.groups_per_rank(8, 3)


def in_the_order_of_megatron_bridge(rank: int, ep_size: int) -> list[str]:
    """By layer, number, name: extract_sort_key. Experts are numbered over the whole model."""
    experts, groups = 16 // ep_size, 8 // ep_size
    found = [(-1, -1, "embedding.word_embeddings.weight")]
    for layer in range(2):
        mlp = f"decoder.layers.{layer}.mlp"
        found.append((layer, -1, f"{mlp}.router.weight"))
        for fc in ("linear_fc1", "linear_fc2"):
            for n in range(rank * experts, (rank + 1) * experts):
                found.append((layer, n, f"{mlp}.experts.{fc}.weight{n}"))
            for n in range(groups):
                found.append((layer, n, f"{mlp}.adjugate_experts.{fc}.weight{n}"))
    return [name for *_, name in sorted(found)]


def steps(parameters: list[str]) -> list[str]:
    """What is gathered, one after the other; with which number differs from rank to rank."""
    return [re.sub(r"\.weight\d+$", ".weight", name) for name in parameters]


@pytest.mark.parametrize("ep_size", [2, 4])
def test_all_ranks_gather_the_same_at_the_same_time(ep_size: int) -> None:
    lists = [in_the_order_of_megatron_bridge(rank, ep_size) for rank in range(ep_size)]
    assert steps(lists[0]) != steps(lists[1]), "there would be nothing to do"
    ours = [names.in_common_order(given) for given in lists]
    for rank in range(ep_size):
        assert sorted(ours[rank]) == sorted(lists[rank])
        assert steps(ours[rank]) == steps(ours[0])
        adjugates = [[n for n in of if names.ADJUGATES in n] for of in (ours[rank], ours[0])]
        assert adjugates[0] == adjugates[1]


def test_layers_stay_together() -> None:
    """A file can be written when its layers are done, not only at the end."""
    ordered = names.in_common_order(in_the_order_of_megatron_bridge(0, 2))
    layers = [m[1] for name in ordered if (m := re.search(r"layers\.(\d)", name))]
    assert layers == sorted(layers)


# ----------------------------------------------------------------------------------------- settings

# Fields that GPTModelProvider adds (gpt_provider.py @ 0.6.2), with their defaults.
PROVIDER = {
    "share_embeddings_and_output_weights": True,
    "position_embedding_type": "learned_absolute",
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "rope_scaling": False,
    "seq_len_interpolation_factor": None,
    "seq_length": 1024,
    "vocab_size": None,
}


def provider_like(a: Architecture, **settings: Any) -> SimpleNamespace:
    """An object with the fields of a provider, all of which are known."""
    known = {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in fields(GroveTransformerConfig)
    } | PROVIDER
    given = provider_settings(a) | settings
    assert given.keys() <= known.keys()
    return SimpleNamespace(**(known | given))


of_release = architectures(GROVE_MOE).filter(lambda a: not unlike_release(a))


@given(of_release)
def test_a_model_is_itself_after_settings(a: Architecture) -> None:
    assert architecture_of_provider(provider_like(a), is_silu=True) == a


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_scaling": True}, "--use-rope-scaling"),
        ({"seq_len_interpolation_factor": 2.0}, "--rotary-seq-len-interpolation-factor"),
        ({"position_embedding_type": "yarn"}, "--position-embedding-type"),
        ({"gated_linear_unit": False}, "--swiglu"),
        ({"moe_shared_expert_intermediate_size": 8}, "--moe-shared-expert-gate"),
        ({"qk_layernorm": False}, r"qk_norm \(none\) of a Grove MoE upcycled from another"),
    ],
)
def test_what_no_hugging_face_model_has_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        architecture_of_provider(provider_like(GROVE, **settings), is_silu=True)


def test_another_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="--swiglu"):
        architecture_of_provider(provider_like(GROVE), is_silu=False)


def test_the_settings_make_a_configuration() -> None:
    """With Megatron's checks and ours, and twice, as Megatron-Bridge does it."""
    from megatron.core.transformer.transformer_config import TransformerConfig
    from torch.nn import functional as F

    given = {k: v for k, v in provider_settings(RELEASED).items() if k not in PROVIDER}
    config = GroveTransformerConfig(**given, activation_func=F.silu, transformer_impl="local")
    before = dict(vars(config))
    TransformerConfig.__post_init__(config)
    GroveTransformerConfig.__post_init__(config)
    assert vars(config) == before


@given(of_release)
def test_the_config_says_all_there_is(a: Architecture) -> None:
    config = hf_config_of(a, "bfloat16")
    assert RELEASED_KEYS.keys() <= config.keys()
    assert architecture_of(config, "the config") == replace(a, expert_bias=False)
    assert (config["model_type"], config["torch_dtype"]) == ("grove_moe", "bfloat16")


def test_released_values_are_written_although_the_release_has_no_keys_for_them() -> None:
    config = hf_config_of(RELEASED, "bfloat16")
    assert {key: config[key] for key in RELEASED_KEYS} == RELEASED_KEYS
