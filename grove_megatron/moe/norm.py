"""A torch norm that sequence parallelism may use.

Megatron's WrappedTorchNorm refuses sequence parallelism, because a torch norm does not mark its
weight: every tensor-parallel rank sees a part of the sequence, so the gradient of the weight has
to be summed over them. The mark is all that is missing.
"""

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


def sequence_parallel_norm(
    config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any
) -> torch.nn.Module:
    """LayerNorm or RMSNorm, as ``config.normalization`` says, marked for sequence parallelism.

    Raises:
        ValueError: the config asks for a norm that torch does not have.
    """
    norms = {"LayerNorm": torch.nn.LayerNorm, "RMSNorm": torch.nn.RMSNorm}
    if config.normalization not in norms or config.layernorm_zero_centered_gamma:
        raise ValueError(
            f"--normalization ({config.normalization}) or --apply-layernorm-1p "
            f"({config.layernorm_zero_centered_gamma}) is not available with --transformer-impl "
            f"(local) and sequence parallelism; use one of {', '.join(norms)} without zero-centered"
            " gamma, or --transformer-impl transformer_engine"
        )
    norm = norms[config.normalization](normalized_shape=hidden_size, eps=eps)
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel
    return norm
