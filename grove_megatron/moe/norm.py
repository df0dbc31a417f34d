"""The norms of ``--transformer-impl local`` where Megatron's own choice would refuse to be built.

Megatron chooses by what is installed, not by what the model asks for (gpt_layer_specs.py:62 @
0.19): with Apex FusedLayerNorm, which refuses to be the last norm of a model with RMSNorm; without
it WrappedTorchNorm, which refuses sequence parallelism and ``memory_efficient_layer_norm``. A
model with LayerNorm and Apex needs nothing from here.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from megatron.core.fusions.fused_layer_norm import FusedLayerNorm
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig

NormBuilder = Callable[..., torch.nn.Module]


def norm_swaps(config: TransformerConfig) -> dict[Any, NormBuilder]:
    """Which of Megatron's norms a local layer spec must not hold, and what stands there instead.

    Empty where Megatron's own can be built.
    """
    if config.normalization == "RMSNorm" and config.memory_efficient_layer_norm:
        return {WrappedTorchNorm: apex_rms_norm, FusedLayerNorm: apex_rms_norm}
    swaps: dict[Any, NormBuilder] = {}
    if config.sequence_parallel:
        swaps[WrappedTorchNorm] = torch_norm
    if config.normalization != "LayerNorm":
        swaps[FusedLayerNorm] = torch_norm
    return swaps


def torch_norm(
    config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any
) -> torch.nn.Module:
    """torch's LayerNorm or RMSNorm, as ``config.normalization`` says, fit for sequence parallelism.

    Raises:
        ValueError: the config asks for a norm that torch does not have.
    """
    norms = {"LayerNorm": torch.nn.LayerNorm, "RMSNorm": torch.nn.RMSNorm}
    if config.normalization not in norms or config.layernorm_zero_centered_gamma:
        raise ValueError(
            f"--normalization ({config.normalization}) or --apply-layernorm-1p "
            f"({config.layernorm_zero_centered_gamma}) is not available with --transformer-impl "
            f"(local); use one of {', '.join(norms)} without zero-centered gamma, or "
            "--transformer-impl transformer_engine"
        )
    if config.memory_efficient_layer_norm:
        raise ValueError(
            f"memory_efficient_layer_norm ({config.memory_efficient_layer_norm}) is not there in "
            "torch's norms; remove it, or build NVIDIA Apex (CONTRIBUTING.md)"
        )
    return _marked(norms[config.normalization](normalized_shape=hidden_size, eps=eps), config)


def apex_rms_norm(
    config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any
) -> torch.nn.Module:
    """Apex's FusedRMSNorm, which keeps its output in place of its input for the backward pass.

    Only ``memory_efficient_layer_norm`` asks for it: torch's RMSNorm is fused as well, but keeps
    its input (apex/normalization/fused_layer_norm.py, class FusedRMSNorm).

    Raises:
        ValueError: Apex's kernels are not installed, or a zero-centered gamma is asked for.
    """
    if find_spec("fused_layer_norm_cuda") is None:
        raise ValueError(
            f"memory_efficient_layer_norm ({config.memory_efficient_layer_norm}) needs "
            "fused_layer_norm_cuda (not installed), a kernel of NVIDIA Apex; remove it, or build "
            "Apex (CONTRIBUTING.md)"
        )
    if config.layernorm_zero_centered_gamma:
        raise ValueError(
            f"--apply-layernorm-1p ({config.layernorm_zero_centered_gamma}) is not available with "
            "--normalization (RMSNorm) and --transformer-impl (local); remove it, or use "
            "--transformer-impl transformer_engine"
        )
    from apex.normalization import FusedRMSNorm

    return _marked(FusedRMSNorm(hidden_size, eps=eps, memory_efficient=True), config)


def _marked(norm: torch.nn.Module, config: TransformerConfig) -> torch.nn.Module:
    """Say that every tensor-parallel rank has the gradient of a part of the sequence alone."""
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return norm
