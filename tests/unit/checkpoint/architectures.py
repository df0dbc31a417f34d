"""Architectures to convert: one of each family by name, and any of them for hypothesis."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from grove_megatron.checkpoint.layer_settings import with_settings
from grove_megatron.model.architecture import Architecture
from grove_megatron.model.families import (
    FAMILIES,
    grove_moe,
    mixtral,
    moe_plus_plus,
    olmoe,
    qwen2_moe,
    qwen3,
    qwen3_moe,
)
from grove_megatron.model.families.family import Family

# Qwen3-30B-A3B, of which the released GroveMoE has the sizes.
QWEN3_MOE = Architecture(
    hidden_size=2048,
    num_attention_heads=32,
    num_query_groups=4,
    head_dim=128,
    vocab_size=151936,
    max_position_embeddings=40960,
    norm_epsilon=1e-6,
    rotary_base=1000000.0,
    tied_embeddings=False,
    qk_layernorm=True,
    moe_layers=(True,) * 48,
    num_experts=128,
    moe_ffn_hidden_size=768,
    topk=8,
)
RELEASED = replace(QWEN3_MOE, num_groups=64, adjugate_ffn_hidden_size=128, adjugate_scale=0.05)
DENSE = Architecture(
    hidden_size=24,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=6,
    vocab_size=50,
    max_position_embeddings=32,
    norm_epsilon=1e-6,
    rotary_base=10000.0,
    tied_embeddings=True,
    qk_layernorm=True,
    moe_layers=(False, False, False),
    ffn_hidden_size=40,
)
MIXED = replace(
    DENSE,
    moe_layers=(True, False, True),
    num_experts=6,
    moe_ffn_hidden_size=20,
    topk=2,
    normalized_topk=False,
)
GROVE = replace(
    MIXED,
    normalized_topk=True,
    num_groups=2,
    adjugate_ffn_hidden_size=10,
    adjugate_scale=0.25,
    expert_bias=True,
)


def with_local_experts(dense: Architecture, experts: int, width: int, **keys: Any) -> Architecture:
    """A MoE++ on a model of the same attention."""
    settings = moe_plus_plus.LOCAL | moe_plus_plus.settings_of(**keys)
    plain = replace(
        dense,
        moe_layers=(True,) * dense.num_layers,
        ffn_hidden_size=0,
        qk_layernorm=False,
        head_dim=dense.hidden_size // dense.num_attention_heads,
        num_experts=experts,
        moe_ffn_hidden_size=width,
        topk=2,
    )
    return with_settings(plain, settings)


# MoE-Plus-Plus-7B, as its config.json says.
MOE_PLUS_PLUS = with_local_experts(
    replace(
        DENSE,
        hidden_size=1536,
        num_attention_heads=16,
        num_query_groups=16,
        vocab_size=65536,
        max_position_embeddings=2048,
        tied_embeddings=False,
        moe_layers=(False,) * 24,
    ),
    experts=16,
    width=4096,
    mixtral_gating=False,
    two_layer_gate=False,
    norm_std=1.0,
    multiplied=False,
)
SMALL_MOE_PLUS_PLUS = with_local_experts(
    DENSE, 6, 20, mixtral_gating=False, two_layer_gate=True, norm_std=0.5, multiplied=True
)

# As their config.json say.
MIXTRAL = replace(
    QWEN3_MOE,
    hidden_size=4096,
    num_query_groups=8,
    vocab_size=32000,
    max_position_embeddings=32768,
    norm_epsilon=1e-5,
    qk_layernorm=False,
    moe_layers=(True,) * 32,
    num_experts=8,
    moe_ffn_hidden_size=14336,
    topk=2,
)
QWEN2_MOE = replace(
    QWEN3_MOE,
    num_attention_heads=16,
    num_query_groups=16,
    max_position_embeddings=8192,
    qk_layernorm=False,
    qkv_bias=True,
    moe_layers=(True,) * 24,
    num_experts=60,
    moe_ffn_hidden_size=1408,
    topk=4,
    normalized_topk=False,
    shared_expert_size=5632,
    shared_expert_gate=True,
)
OLMOE = with_settings(
    replace(
        QWEN3_MOE,
        num_attention_heads=16,
        num_query_groups=16,
        vocab_size=50304,
        max_position_embeddings=4096,
        norm_epsilon=1e-5,
        rotary_base=10000.0,
        moe_layers=(True,) * 16,
        num_experts=64,
        moe_ffn_hidden_size=1024,
        normalized_topk=False,
    ),
    {"grove_whole_qk_norm": True},
)


def groups_on(parent: Architecture, size: int = 2) -> Architecture:
    """The child of a parent without the paper's router."""
    return replace(
        parent,
        num_groups=parent.num_experts // size,
        adjugate_ffn_hidden_size=12,
        adjugate_scale=0.05,
        expert_bias=parent.normalized_topk,
    )


NAMED = {
    "Qwen3-30B-A3B": QWEN3_MOE,
    "released GroveMoE": RELEASED,
    "dense": DENSE,
    "mixed": MIXED,
    "grove": GROVE,
    "MoE-Plus-Plus-7B": MOE_PLUS_PLUS,
    "MoE++": SMALL_MOE_PLUS_PLUS,
    "Mixtral-8x7B": MIXTRAL,
    "Qwen1.5-MoE-A2.7B": QWEN2_MOE,
    "OLMoE-1B-7B": OLMOE,
    "groups on Mixtral": groups_on(MIXTRAL),
    "groups on Qwen2-MoE": groups_on(QWEN2_MOE),
    "groups on OLMoE": groups_on(OLMOE),
}

SIZES = st.integers(1, 200)


@st.composite
def architectures(draw: Any, family: Family | None = None) -> Architecture:
    """Any architecture that Hugging Face has a class for, of one family or of any."""
    family = family or draw(st.sampled_from(FAMILIES))
    num_layers, groups = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    dense = Architecture(
        hidden_size=draw(SIZES),
        num_attention_heads=groups * draw(st.integers(1, 4)),
        num_query_groups=groups,
        head_dim=draw(SIZES),
        vocab_size=draw(SIZES),
        max_position_embeddings=draw(SIZES),
        norm_epsilon=draw(st.floats(1e-12, 1e-2)),
        rotary_base=draw(st.integers(1, 10**8) | st.sampled_from([10000.0, 1e6, 5e6])),
        tied_embeddings=draw(st.booleans()),
        qk_layernorm=True,
        moe_layers=(False,) * num_layers,
        ffn_hidden_size=draw(SIZES),
    )
    if family is moe_plus_plus.MOE_PLUS_PLUS:
        width = draw(SIZES) * dense.num_attention_heads
        mixtral = draw(st.booleans())
        layers = (False,) * max(2, num_layers)
        return with_local_experts(
            replace(dense, hidden_size=width, moe_layers=layers),
            experts=draw(SIZES),
            width=draw(SIZES),
            mixtral_gating=mixtral,
            two_layer_gate=draw(st.booleans()),
            norm_std=draw(st.none() | st.just(1.0) | st.floats(1e-3, 1e3)),
            multiplied=draw(st.booleans()),
        )
    kind = family
    if family is grove_moe.GROVE_MOE:
        # Of the release, or of another parent.
        kind = draw(st.sampled_from([qwen3_moe.QWEN3_MOE, *_PARENTS]))
    if kind in (qwen2_moe.QWEN2_MOE, olmoe.OLMOE):
        # Its code divides.
        width = draw(SIZES) * dense.num_attention_heads
        dense = replace(dense, hidden_size=width, head_dim=width // dense.num_attention_heads)
    return dense if family is qwen3.QWEN3 else draw(with_experts(dense, family, kind))


_PARENTS = (mixtral.MIXTRAL, qwen2_moe.QWEN2_MOE, olmoe.OLMOE)


@st.composite
def with_experts(draw: Any, dense: Architecture, family: Family, kind: Family) -> Architecture:
    """A dense model with experts in some of its layers, and groups where the family has them."""
    layers = draw(st.lists(st.booleans(), min_size=dense.num_layers, max_size=dense.num_layers))
    layers[draw(st.integers(0, dense.num_layers - 1))] = True
    if kind in (mixtral.MIXTRAL, olmoe.OLMOE):
        layers = [True] * dense.num_layers
    # Of one expert there is no normalised weight.
    num_groups, size = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    plain = replace(
        dense,
        moe_layers=tuple(layers),
        ffn_hidden_size=0 if all(layers) else dense.ffn_hidden_size,
        num_experts=num_groups * size,
        moe_ffn_hidden_size=draw(SIZES),
        topk=draw(st.integers(2, num_groups * size)),
        normalized_topk=family is grove_moe.GROVE_MOE or draw(st.booleans()),
    )
    if kind is mixtral.MIXTRAL:
        plain = replace(plain, qk_layernorm=False, normalized_topk=True)
    elif kind is olmoe.OLMOE:
        plain = with_settings(plain, {"grove_whole_qk_norm": True})
    elif kind is qwen2_moe.QWEN2_MOE:
        plain = replace(
            plain,
            qk_layernorm=False,
            qkv_bias=draw(st.booleans()),
            shared_expert_size=draw(SIZES),
            shared_expert_gate=True,
        )
    if family is not grove_moe.GROVE_MOE:
        return plain
    if kind in (qwen2_moe.QWEN2_MOE, olmoe.OLMOE):
        plain = replace(plain, normalized_topk=draw(st.booleans()))
    return replace(
        plain,
        num_groups=num_groups,
        adjugate_ffn_hidden_size=draw(st.just(128) | SIZES),
        adjugate_scale=draw(st.just(0.05) | st.floats(0, 1)),
        expert_bias=plain.normalized_topk and draw(st.booleans()),
    )
