"""Routers in a job of one rank, ours and Megatron's, and skewed logits for them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig

from grove_megatron import runtime
from grove_megatron.config import GroveTransformerConfig
from grove_megatron.moe.router import GroveRouter

TOKENS, EXPERTS, GROUPS, TOPK, HIDDEN = 24, 8, 4, 3, 16
BIASED = {"moe_router_enable_expert_bias": True, "moe_router_score_function": "sigmoid"}
# In rising order of how many tokens want the expert.
SKEW = torch.linspace(-2, 2, EXPERTS)


@contextlib.contextmanager
def one_rank(store: Path) -> Iterator[None]:
    """Megatron's process groups for a job of one rank."""
    with runtime.cpu():
        dist.init_process_group(
            "gloo", store=dist.FileStore(os.fspath(store), 1), rank=0, world_size=1
        )
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(1)
        yield
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def settings(**more) -> dict:
    return {
        "num_layers": 2,
        "hidden_size": HIDDEN,
        "num_attention_heads": 2,
        "add_bias_linear": False,
        "num_moe_experts": EXPERTS,
        "moe_router_topk": TOPK,
        "moe_router_load_balancing_type": "none",
        "moe_token_dispatcher_type": "alltoall",
        **more,
    }


def grove_config(**more) -> GroveTransformerConfig:
    return GroveTransformerConfig(
        **settings(grove_num_groups=GROUPS, grove_adjugate_ffn_hidden_size=4, **more)
    )


def grove_router(config: GroveTransformerConfig | None = None, **more) -> GroveRouter:
    router = GroveRouter(
        config or grove_config(**(BIASED | more)), ProcessGroupCollection.use_mpu_process_groups()
    )
    router.set_layer_number(1)
    return router


def megatrons_router(**more) -> TopKRouter:
    config = TransformerConfig(**settings(**BIASED, **more))
    return TopKRouter(config, ProcessGroupCollection.use_mpu_process_groups())


def tokens(seed: int, number: int = TOKENS) -> torch.Tensor:
    """Logits [T, E] that prefer the last experts."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, EXPERTS, generator=generator) + SKEW


def route(router: TopKRouter, logits: torch.Tensor, **named) -> tuple[torch.Tensor, torch.Tensor]:
    return router.routing(logits.unsqueeze(1), **named)
