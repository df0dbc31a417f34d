"""On the ranks: a Grove layer on a part of the sequence each, and on the whole of it."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.multirank.on_ranks import grove_config, megatron, moe_layer

HIDDEN, TOKENS = 8, 16


def trains(folder: str, ranks: int) -> None:
    """Job: output, gradients summed over the ranks, counts, and the step of the expert bias."""
    from megatron.core import parallel_state
    from megatron.core.utils import get_batch_on_this_cp_rank

    from grove_megatron.moe.counts import LayerCounts

    with megatron(context_parallel_size=ranks):
        layer: Any = moe_layer(
            grove_config(
                context_parallel_size=ranks,
                num_moe_experts=8,
                grove_num_groups=4,
                grove_adjugate_ffn_hidden_size=4,
                grove_adjugate_scale=0.3,
                moe_router_load_balancing_type="aux_loss",
                moe_aux_loss_coeff=1.0,
                grove_group_aux_loss_coeff=1.0,
                moe_router_enable_expert_bias=True,
            )
        ).train()
        layer.counts = LayerCounts(layer.token_dispatcher, layer.config.moe_router_topk)
        whole = torch.randn(1, TOKENS, HIDDEN, generator=torch.Generator().manual_seed(5))
        group = parallel_state.get_context_parallel_group()
        # Two pieces of the sequence a rank, one from either end.
        part = get_batch_on_this_cp_rank({"tokens": whole}, is_hybrid_cp=False, cp_group=group)
        x = part["tokens"].transpose(0, 1).contiguous().requires_grad_()
        y, _ = layer(x)
        y.square().sum().backward()
        found = {n: p.grad for n, p in layer.named_parameters()}
        found["counts"] = layer.counts.take(layer.router.expert_bias)
        found["selected"] = layer.router.local_tokens_per_expert.clone()
        for tensor in found.values():
            dist.all_reduce(tensor, group=group)
        torch.save(
            {"sums": found, "x": x.grad, "y": y.detach()}, Path(folder) / f"{dist.get_rank()}.pt"
        )
