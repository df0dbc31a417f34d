"""What a configuration or an argument namespace says of a model, without importing Megatron."""

from typing import Any

from .architecture import layers_with_experts

MATRIX_OPTIMIZERS = ("muon", "dist_muon", "adaptive_muon", "soap")
"""Optimizers that treat a two-dimensional parameter as a matrix, and so need one per expert."""


def has_adjugates(config: Any) -> bool:
    """Does this configuration (or argument namespace) ask for groups, with an adjugate each?"""
    return bool(getattr(config, "grove_num_groups", None))


def has_grove_layers(config: Any) -> bool:
    """Does it ask for this package's MoE layer, with groups or for a plain MoE?"""
    return has_adjugates(config) or bool(getattr(config, "grove_dispatch", False))


def expert_tensor_parallel_size(settings: Any) -> int:
    """Over how many ranks an expert is split: by Megatron's default as a dense layer is.

    Args:
        settings: a configuration, or an argument namespace before or after its validation.
    """
    return int(settings.expert_tensor_parallel_size or settings.tensor_model_parallel_size)


def moe_pattern(settings: Any) -> tuple[bool, ...]:
    """Of every decoder layer: has it experts? As Megatron reads ``--moe-layer-freq``.

    Args:
        settings: a configuration or an argument namespace of a model with experts.
    """
    return layers_with_experts(settings.moe_layer_freq, settings.num_layers)


def choose_kernel(args: Any) -> None:
    """Expert modules of a command line that leaves them open, as the optimizer needs them.

    Args:
        args: an argument namespace, with a Grove layer.
    """
    if args.grove_kernel == "auto" and args.optimizer in MATRIX_OPTIMIZERS:
        args.grove_kernel = "megatron"
