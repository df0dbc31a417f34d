"""The layer spec: what ``--spec grove_megatron.layer_spec grove_layer_spec`` names.

It asks Megatron for its own spec and changes six things in it: the MoE layer; the layer around it
where something travels beside the hidden states; the norm, and multi-latent attention, where
Megatron's would refuse to be built; the norms of queries and keys where they are of all heads; and
the checkpoint key of the norm before a layer with groups. Experts, attention and everything else
stay what Megatron chose for the local or TransformerEngine implementation.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)

from .config import GroveTransformerConfig, has_adjugates, has_grove_layers
from .layer_count import check_after_build
from .moe.carried import CarryingLayer
from .moe.experts import GroupedExperts
from .moe.kernel_choice import takes_grouped_experts
from .moe.latent_attention import LatentCoreAttention, LatentSelfAttention
from .moe.layer import GroveMoELayer
from .moe.norm import norm_swaps
from .moe.qk_norm import key_norm, query_norm
from .moe.router import GroveRouter
from .parts import registry


def grove_layer_spec(model_config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The decoder block of this pipeline stage, with Grove layers where Megatron has MoE layers.

    Args:
        model_config: Megatron's GPTModelConfig (it calls this with one), or a TransformerConfig.
        vp_stage: virtual pipeline stage, None without virtual pipelining.

    Returns:
        Megatron's own block spec if the config asks for no Grove layers.

    Raises:
        ValueError: the config is not a GroveTransformerConfig; and, once the model is built, by a
            hook of a GPTModelConfig, it has not as many Grove layers as the config asks for.
    """
    config: TransformerConfig = getattr(model_config, "transformer", model_config)
    if not isinstance(config, GroveTransformerConfig):
        raise ValueError(
            f"config ({type(config).__name__}) is not a GroveTransformerConfig and cannot say what "
            "Grove layer to build; start with grove_megatron.pretrain or grove_megatron.run, or "
            "pass a GroveTransformerConfig"
        )
    if hasattr(model_config, "post_wrap_hooks"):
        check_after_build(model_config)
    block = get_gpt_decoder_block_spec(
        config,
        use_transformer_engine=config.transformer_impl == "transformer_engine",
        normalization=config.normalization,
        qk_l2_norm=config.qk_l2_norm,
        vp_stage=vp_stage,
    )
    return adapt_spec(block, config)


def adapt_spec(spec: Any, config: TransformerConfig) -> Any:
    """A copy of a Megatron spec with Grove layers and norms where ``config`` needs them.

    Works on block, layer and MTP specs alike; the original is not changed. Layers that shared one
    spec object share one afterwards.
    """
    swaps: dict[Any, Any] = {}
    if has_grove_layers(config):
        swaps = {MoELayer: GroveMoELayer, TopKRouter: GroveRouter}
        if registry.needs(config):
            swaps[TransformerLayer] = CarryingLayer
        if takes_grouped_experts(config):
            swaps[SequentialMLP] = GroupedExperts
    if config.transformer_impl == "local":
        swaps |= norm_swaps(config)
        if config.multi_latent_attention:
            swaps[DotProductAttention] = LatentCoreAttention
            swaps[MLASelfAttention] = LatentSelfAttention
    adapts: list[tuple[type, Callable[[Any], None]]] = []
    if has_adjugates(config):
        # A plain MoE has Megatron's keys.
        adapts.append((TransformerLayerSubmodules, _keep_norm_apart))
    if has_grove_layers(config) and config.grove_whole_qk_norm:
        adapts.append((SelfAttentionSubmodules, _norm_all_heads))
    return swap_classes(spec, swaps, adapts) if swaps else spec


def swap_classes(
    spec: Any,
    swaps: Mapping[Any, Any],
    adapts: Sequence[tuple[type, Callable[[Any], None]]] = (),
) -> Any:
    """A copy of a spec tree in which every class that is a key of ``swaps`` is its value.

    Walks partials, lists and dataclasses. What was one object in the original is one afterwards.

    Args:
        spec: not changed.
        swaps: new classes by old ones.
        adapts: classes of submodules, and what changes a copy of one.
    """
    done: dict[int, Any] = {}

    def swapped(node: Any) -> Any:
        if id(node) in done:
            return done[id(node)]
        if isinstance(node, type):
            new = swaps.get(node, node)
        elif isinstance(node, partial):
            keywords = {k: swapped(v) for k, v in node.keywords.items()}
            new = partial(swapped(node.func), *node.args, **keywords)
        elif isinstance(node, list):
            new = [swapped(item) for item in node]
        elif is_dataclass(node):
            new = copy.copy(node)
            for field in fields(node):
                setattr(new, field.name, swapped(getattr(node, field.name)))
            for kind, adapt in adapts:
                if isinstance(new, kind):
                    adapt(new)
        else:
            new = node
        done[id(node)] = new
        return new

    return swapped(spec)


def _norm_all_heads(attention: SelfAttentionSubmodules) -> None:
    attention.q_layernorm, attention.k_layernorm = query_norm, key_norm


def _keep_norm_apart(layer: TransformerLayerSubmodules) -> None:
    """Give the norm before a Grove layer the checkpoint key that it has with TransformerEngine.

    Megatron's local layers write it as a part of the MLP's first matrix, where TransformerEngine
    has it in dense layers; before experts TransformerEngine keeps it apart. With one key for both,
    a checkpoint of either can be read by the other.
    """
    module = getattr(layer.mlp, "func", getattr(layer.mlp, "module", None))
    if module is GroveMoELayer:
        keys = layer.sharded_state_dict_keys_map
        # A new map: layers that are not Grove's share the old one.
        layer.sharded_state_dict_keys_map = {
            name: key for name, key in keys.items() if not name.startswith("pre_mlp_layernorm.")
        }
