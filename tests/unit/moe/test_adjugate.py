"""The configuration of adjugates: their own width, and everything else as experts have it."""

from typing import Any

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import (
    get_align_size_for_quantization,
    skip_routed_expert_padding,
)

from grove_megatron.config import GroveTransformerConfig
from grove_megatron.moe.adjugate import adjugate_config


def config(**settings: Any) -> GroveTransformerConfig:
    given: dict[str, Any] = {
        "num_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "transformer_impl": "local",
        "num_moe_experts": 4,
        "moe_ffn_hidden_size": 48,
        "moe_token_dispatcher_type": "alltoall",
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
        "grove_num_groups": 2,
        "grove_adjugate_ffn_hidden_size": 16,
    }
    made = GroveTransformerConfig(**given)
    for name, value in settings.items():
        # Megatron asks for TransformerEngine's version when it checks the formats.
        assert hasattr(made, name)
        setattr(made, name, value)
    return made


def differing(one: GroveTransformerConfig, other: GroveTransformerConfig) -> set[str]:
    """Copies of functions are the same functions, but not equal."""
    return {
        name
        for name, value in vars(one).items()
        if value != getattr(other, name) and not callable(value)
    }


def test_adjugates_differ_from_experts_in_their_width_alone() -> None:
    experts = config()
    adjugates = adjugate_config(experts)
    assert differing(experts, adjugates) == {"moe_ffn_hidden_size", "ffn_hidden_size"}
    assert adjugates.moe_ffn_hidden_size == adjugates.ffn_hidden_size == 16
    assert experts.moe_ffn_hidden_size == 48


def test_what_belongs_to_routed_experts_alone_is_off_for_adjugates() -> None:
    experts = config(fine_grained_activation_offloading=True, moe_paged_stash=True)
    adjugates = adjugate_config(experts)
    assert not adjugates.fine_grained_activation_offloading
    assert not adjugates.moe_paged_stash
    assert experts.moe_paged_stash


@pytest.mark.parametrize(("recipe", "size"), [("delayed", 16), ("blockwise", 16), ("mxfp8", 32)])
def test_adjugates_pad_their_rows_to_the_format_as_experts_do(recipe: str, size: int) -> None:
    """Rows of a group are another number than those of its experts, so each pads its own."""
    experts = config(fp8="e4m3", fp8_recipe=recipe)
    adjugates = adjugate_config(experts)
    for of in (experts, adjugates):
        assert get_align_size_for_quantization(of) == size
        assert not skip_routed_expert_padding(of), "nobody else would pad"
