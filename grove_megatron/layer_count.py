"""Does a built model hold the Grove layers its config asks for?"""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import get_model_config, unwrap_model

from .config import has_grove_layers, moe_pattern
from .moe.carried import CarryingLayer
from .moe.layer import GroveMoELayer


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
    if has_grove_layers(config) and config.grove_gating_residual:
        check_carrying(models)
    if built != expected:
        raise ValueError(
            f"Grove layers in the model ({built}) differ from those the flags ask for "
            f"({expected}); pass --spec grove_megatron.layer_spec grove_layer_spec"
        )
    return models


def check_carrying(models: list[Any]) -> None:
    """With a gating residual, that the layers beside MoE layers hand their logits on.

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
            f"--grove-gating-residual (True) needs layers of CarryingLayer, and the model has "
            f"{', '.join(others)}, which hand no logits on; pass --spec grove_megatron.layer_spec "
            "grove_layer_spec"
        )


def expected_grove_layers(config: TransformerConfig) -> int:
    """How many Grove layers a model of this config has, MTP layers included."""
    if not has_grove_layers(config):
        return 0
    pattern = moe_pattern(config)
    mtp_layers = 1 if config.mtp_use_repeated_layer else config.mtp_num_layers
    return sum(pattern) + (mtp_layers or 0) * pattern[-1]
