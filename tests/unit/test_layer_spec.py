"""The layer spec: what is swapped, and what is left as Megatron made it."""

from functools import partial

import pytest
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.multi_token_prediction import get_mtp_layer_spec_for_backend
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig

from grove_megatron.config import GroveTransformerConfig
from grove_megatron.layer_spec import adapt_spec, grove_layer_spec, swap_classes
from grove_megatron.moe.layer import GroveMoELayer
from grove_megatron.moe.norm import torch_norm
from grove_megatron.moe.router import GroveRouter

SIZE = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "transformer_impl": "local"}
MOE = {"num_moe_experts": 4, "moe_token_dispatcher_type": "alltoall", "add_bias_linear": False}
GROVE = {"grove_num_groups": 2, "grove_adjugate_ffn_hidden_size": 4}


def grove_config(**settings: object) -> GroveTransformerConfig:
    return GroveTransformerConfig(**SIZE, **MOE, **GROVE, **settings)


def test_layer_and_router_are_swapped_and_the_original_is_not_changed() -> None:
    original = get_moe_module_spec(use_te=False, num_experts=4)
    adapted = adapt_spec(original, grove_config())
    assert adapted.func is GroveMoELayer
    assert adapted.keywords["submodules"].router is GroveRouter
    assert adapted.keywords["submodules"].experts is not None
    assert original.func is MoELayer
    assert original.keywords["submodules"].router is TopKRouter


def test_a_module_spec_is_swapped_like_a_partial() -> None:
    original = ModuleSpec(module=MoELayer, submodules=MoESubmodules(experts=print))
    adapted = adapt_spec(original, grove_config())
    assert adapted.module is GroveMoELayer
    assert adapted.submodules.router is GroveRouter
    assert adapted.submodules.experts is print


def test_layers_that_share_a_spec_share_one_afterwards() -> None:
    layer = partial(MoELayer, submodules=MoESubmodules(experts=print))
    first, second = adapt_spec([layer, layer], grove_config())
    assert first is second


def test_classes_are_swapped_anywhere_in_a_spec_and_the_original_is_not_changed() -> None:
    class Ours(MoELayer):
        pass

    layer = partial(MoELayer, submodules=MoESubmodules(experts=ModuleSpec(module=TopKRouter)))
    spec = [layer, layer, {"left": MoELayer}]
    first, second, other = swap_classes(spec, {MoELayer: Ours, TopKRouter: GroveRouter})
    assert first is second
    assert first.func is Ours
    assert first.keywords["submodules"].experts.module is GroveRouter
    assert other == {"left": MoELayer}, "only partials, lists and dataclasses are walked"
    assert layer.func is MoELayer
    assert layer.keywords["submodules"].experts.module is TopKRouter


def test_norms_are_swapped_only_for_sequence_parallelism() -> None:
    parallel = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    assert adapt_spec([WrappedTorchNorm], grove_config(**parallel)) == [torch_norm]
    assert adapt_spec([WrappedTorchNorm], grove_config()) == [WrappedTorchNorm]


def test_the_norm_before_a_grove_layer_has_the_key_it_has_with_transformer_engine() -> None:
    moe, dense = (get_gpt_layer_local_spec(num_experts=number) for number in (4, None))
    before = dict(moe.submodules.sharded_state_dict_keys_map)
    first, second, other = adapt_spec([moe, moe, dense], grove_config())
    # In a dense layer TransformerEngine has both norms in the matrices behind them.
    assert other.submodules.sharded_state_dict_keys_map == before
    qkv = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    assert first.submodules.sharded_state_dict_keys_map == qkv
    assert first is second
    assert moe.submodules.sharded_state_dict_keys_map == before
    assert set(before) == {*qkv, "pre_mlp_layernorm."}


def test_the_norm_in_an_mtp_layer_has_that_key_too() -> None:
    layer = get_gpt_layer_local_spec(num_experts=4)
    mtp = adapt_spec(get_mtp_layer_spec_for_backend(layer, LocalSpecProvider()), grove_config())
    keys = mtp.submodules.mtp_model_layer.submodules.sharded_state_dict_keys_map
    assert keys == {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}


def test_without_groups_the_very_object_comes_back() -> None:
    spec = get_moe_module_spec(use_te=False, num_experts=4)
    assert adapt_spec(spec, GroveTransformerConfig(**SIZE, **MOE)) is spec


def test_a_config_that_cannot_say_what_to_build_is_refused() -> None:
    with pytest.raises(ValueError, match=r"config \(TransformerConfig\) is not a Grove"):
        grove_layer_spec(TransformerConfig(**SIZE, **MOE))
