"""Multi-latent attention of a command line: its sizes, Megatron's FLOPs, and what is refused."""

import copy
from argparse import Namespace
from dataclasses import fields
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.transformer.transformer_config import MLATransformerConfig
from megatron.training import training

from grove_megatron.model.architecture import LatentAttention
from grove_megatron.planner.flops import flops_per_token
from grove_megatron.runtime import cpu
from grove_megatron.training.idle_flags import idle_flags
from grove_megatron.training.preflight import preflight
from grove_megatron.training.sizes import sizes_of
from grove_megatron.training.transformer_config import (
    GroveMLATransformerConfig,
    transformer_config,
)

from .command_lines import parsed, validated

LATENT = (
    "--multi-latent-attention --q-lora-rank 12 --kv-lora-rank 10 --qk-head-dim 6 "
    "--qk-pos-emb-head-dim 4 --v-head-dim 7 --position-embedding-type rope"
)


@pytest.mark.parametrize("flags", ["", "--transformer-impl transformer_engine"])
def test_sizes_are_read_from_the_flags(flags: str) -> None:
    model = sizes_of(parsed(f"{LATENT} {flags}")).model
    assert model.latent == LatentAttention(
        q_lora_rank=12,
        kv_lora_rank=10,
        qk_head_dim=6,
        qk_pos_emb_head_dim=4,
        v_head_dim=7,
        whole_compression=bool(flags),
    )
    assert (model.head_dim, model.num_query_groups) == (10, 2)
    assert sizes_of(parsed()).model.latent is None


def test_sizes_are_the_same_after_megatrons_validation() -> None:
    args = parsed(LATENT)
    assert sizes_of(validated(args)) == sizes_of(args)


@cache
def _plain() -> Namespace:
    words = f"{LATENT} --ffn-hidden-size 40 --moe-ffn-hidden-size 24"
    args = validated(parsed(words, plain=True))
    # Megatron sets it when it has read the tokenizer.
    args.padded_vocab_size = 128
    return args


width = st.integers(1, 99)


@given(
    queries=st.none() | width,
    drawn=st.tuples(*[width] * 8),
    depths=st.integers(0, 2),
    moe=st.lists(st.booleans(), min_size=1, max_size=4),
    norms=st.booleans(),
)
def test_flops_are_megatrons(
    queries: int | None, drawn: tuple[int, ...], depths: int, moe: list[bool], norms: bool
) -> None:
    args = copy.copy(_plain())
    args.q_lora_rank, args.mtp_num_layers, args.qk_layernorm = queries, depths or None, norms
    args.num_layers, args.moe_layer_freq = len(moe), [int(one) for one in moe]
    args.kv_lora_rank, args.qk_head_dim, args.qk_pos_emb_head_dim, args.v_head_dim = drawn[:4]
    args.hidden_size, args.num_attention_heads, args.seq_length, shared = drawn[4:]
    args.moe_shared_expert_intermediate_size = shared
    megatrons = training.num_floating_point_operations(copy.copy(args), 3)
    planned = flops_per_token(sizes_of(args).model, args.seq_length) * 3 * args.seq_length
    assert planned == pytest.approx(megatrons, rel=1e-12)


@pytest.mark.parametrize("flags", ["", "--moe-router-enable-expert-bias"])
def test_the_configuration_has_groves_settings_and_megatrons_of_latent_attention(
    flags: str,
) -> None:
    with cpu():
        config = transformer_config(validated(parsed(f"{LATENT} --normalization RMSNorm {flags}")))
        plain = transformer_config(validated(parsed()))
    assert type(config) is GroveMLATransformerConfig
    assert (config.grove_num_groups, config.kv_lora_rank, config.rope_type) == (4, 10, "yarn")
    # Megatron's own takes no expert bias beside softmax.
    assert config.moe_router_score_function == "sigmoid"
    assert not isinstance(plain, MLATransformerConfig)


def test_made_by_hand_it_has_megatrons_defaults_of_such_a_model() -> None:
    sizes = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    config, megatrons = (
        kind(**sizes) for kind in (GroveMLATransformerConfig, MLATransformerConfig)
    )
    for field in fields(MLATransformerConfig):
        if "init_method" not in field.name:
            assert getattr(config, field.name) == getattr(megatrons, field.name), field.name


def test_megatrons_local_layers_are_refused_on_a_cpu_and_ours_are_not() -> None:
    lines = [*map(str, preflight(parsed(LATENT, plain=True), "cpu"))]
    assert lines == [
        "--multi-latent-attention (True) on the CPU runtime needs the layers of this package; add "
        "--grove-dispatch"
    ]
    for ours in ("--grove-dispatch", "--spec grove_megatron.layer_spec grove_layer_spec"):
        assert preflight(parsed(f"{LATENT} {ours}", plain=True), "cpu") == []
    assert preflight(parsed(LATENT), "cpu") == []


@pytest.mark.parametrize(
    ("flags", "silent"),
    [
        (LATENT, True),
        (f"{LATENT} --rope-type rope", False),
        ("", False),
        ("--position-embedding-type yarn", True),
    ],
)
def test_a_scale_of_positions_that_nothing_reads_is_said(flags: str, silent: bool) -> None:
    said = " ".join(map(str, idle_flags(parsed(f"{flags} --rotary-scaling-factor 4"))))
    assert ("--rotary-scaling-factor (4.0) does nothing" not in said) == silent
