"""Does a built model hold the Grove layers its config asks for?"""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import get_model_config, unwrap_model

from .config import has_grove_layers, moe_pattern
from .moe.carried import CarryingLayer, carrying_flags
from .moe.layer import GroveMoELayer
from .parts import registry


def check_after_build(model_config: Any) -> None:
    """Have Megatron's builder call :func:`check_grove_layers` on what it built, once."""
    if check_grove_layers not in model_config.post_wrap_hooks:
        model_config.post_wrap_hooks.append(check_grove_layers)


def check_grove_layers(models: list[Any]) -> list[Any]:
    """Compare the Grove layers on all pipeline stages with the config; a hook of a model config.

    Args:
        models: this rank's model chunks, wrapped or not; every rank must call.

    Returns:
        ``models``.

    Raises:
        ValueError: the numbers differ; on every rank.
    """
    config = get_model_config(models[0])
    layers = [m for model in models for m in model.modules() if isinstance(m, GroveMoELayer)]
    count = torch.tensor([len(layers)], device=torch.cuda.current_device())
    dist.all_reduce(count, group=unwrap_model(models)[0].pg_collection.pp)
    built, expected = int(count.item()), expected_grove_layers(config)
    if dist.get_backend() == "fake" and has_grove_layers(config):
        # Nobody knows the other stages; here at least no layer may be Megatron's own.
        expected = sum(isinstance(m, MoELayer) for model in models for m in model.modules())
    if has_grove_layers(config) and registry.needs(config):
        check_carrying(models, config)
    if built != expected:
        raise ValueError(
            f"Grove layers in the model ({built}) differ from those the flags ask for "
            f"({expected}); pass --spec grove_megatron.layer_spec grove_layer_spec"
        )
    return models


def check_carrying(models: list[Any], config: Any) -> None:
    """Where something travels beside the hidden states, that all layers hand it on.

    Raises:
        ValueError: some are of another class.
    """
    blocks = [m for model in models for m in model.modules() if isinstance(m, TransformerBlock)]
    layers = [
        layer
        for block in blocks
        if any(isinstance(m, GroveMoELayer) for m in block.modules())
        for layer in block.layers
    ]
    others = sorted({type(m).__name__ for m in layers if not isinstance(m, CarryingLayer)})
    if others:
        raise ValueError(
            f"{' and '.join(carrying_flags(config))} needs layers of CarryingLayer, and the model "
            f"has {', '.join(others)}, which hand nothing on; pass --spec "
            "grove_megatron.layer_spec grove_layer_spec"
        )
    begun = [bool(getattr(unwrap_model(model), "carries", ())) for model in models]
    if registry.needs(config) - {"logits"} and not all(begun):
        raise ValueError(
            f"{' and '.join(carrying_flags(config))} needs columns that begin at the embedding, "
            "and the model was built by another builder; start with grove_megatron.pretrain or "
            "grove_megatron.run"
        )


def expected_grove_layers(config: TransformerConfig) -> int:
    """How many Grove layers a model of this config has, MTP layers included."""
    if not has_grove_layers(config):
        return 0
    pattern = moe_pattern(config)
    mtp_layers = 1 if config.mtp_use_repeated_layer else config.mtp_num_layers
    return sum(pattern) + (mtp_layers or 0) * pattern[-1]
