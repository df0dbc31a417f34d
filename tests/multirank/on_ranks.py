"""Helpers that run on the ranks of a job."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist


@contextlib.contextmanager
def megatron(**parallel_sizes: int) -> Iterator[None]:
    """The CPU runtime, a gloo world, Megatron's groups, and seeded random streams."""
    from megatron.core import parallel_state, tensor_parallel

    from grove_megatron.runtime import cpu

    with cpu():
        dist.init_process_group("gloo")
        parallel_state.initialize_model_parallel(**parallel_sizes)
        tensor_parallel.model_parallel_cuda_manual_seed(7)
        try:
            yield
        finally:
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()


def grove_config(**settings: Any) -> Any:
    """A GroveTransformerConfig with SwiGLU, no biases, and no fusions."""
    from grove_megatron.config import GroveTransformerConfig

    defaults: dict[str, Any] = {
        "num_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": 8,
        "num_moe_experts": 4,
        "moe_ffn_hidden_size": 6,
        "moe_router_topk": 2,
        "moe_token_dispatcher_type": "alltoall",
        "moe_router_load_balancing_type": "none",
        "moe_router_dtype": "fp32",
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
        "bias_activation_fusion": False,
        "gradient_accumulation_fusion": False,
        "transformer_impl": "local",
        "init_method_std": 0.4,
    }
    return GroveTransformerConfig(**(defaults | settings))


def moe_layer(config: Any, grove: bool = True, **more: Any) -> torch.nn.Module:
    """The MoE layer a model of this config would have, through the layer spec; or Megatron's.

    Args:
        config: of the model.
        grove: or Megatron's.
        more: arguments that a model does not give.
    """
    from functools import partial

    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec

    from grove_megatron.layer_spec import adapt_spec

    spec: Any = get_moe_module_spec(use_te=False, num_experts=config.num_moe_experts)
    assert isinstance(spec, partial)
    return (adapt_spec(spec, config) if grove else spec)(config=config, **more)


def gathered(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of all ranks, of any shapes, on every rank."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, tensor.detach().clone())
    return everyone
