"""What a run sent and how large its model is, in one line after training."""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import mpu
from megatron.core.transformer.transformer_config import TransformerConfig

from ..model.parameters import Counts
from ..moe.layer import GroveMoELayer

PREFIX = "grove_megatron summary: "


def print_summary(models: list[torch.nn.Module], config: TransformerConfig) -> None:
    """Print ``PREFIX`` and a JSON object on rank 0; every rank must call.

    rows_per_token is what was sent, the rows a rank keeps included, averaged over layers, ranks
    and all forward passes (validation too); routed_pairs_per_token is the work the rows stood for,
    one row each in Megatron's own all-to-all. params_total counts every parameter of the whole
    model once; params_active those an average token used, by the measured number of experts and
    adjugates per token. On a fake process group there is this rank alone, and
    simulated_ranks says so.
    """
    layers = [m for model in models for m in model.modules() if isinstance(m, GroveMoELayer)]
    counted = torch.zeros(4, dtype=torch.float64, device=torch.cuda.current_device())
    for layer in layers:
        t = layer.token_dispatcher.traffic
        counted += counted.new_tensor([t.tokens, t.routed_pairs, t.rows, t.adjugate_pairs])
    dist.all_reduce(counted)
    tokens, pairs, rows, adjugate_pairs = counted.tolist()
    counts = count_parameters(models)
    experts, groups = config.num_moe_experts or 0, getattr(config, "grove_num_groups", None) or 0
    met = (pairs / tokens, adjugate_pairs / tokens) if tokens else (config.moe_router_topk, 0.0)
    summary: dict[str, Any] = {
        "params_total": counts.total,
        "params_active": round(counts.active(met[0], experts, met[1], groups)),
    }
    if tokens:
        summary["rows_per_token"] = rows / tokens
        summary["routed_pairs_per_token"] = pairs / tokens
        summary["adjugate_pairs_per_token"] = adjugate_pairs / tokens
    if dist.get_backend() == "fake":
        summary["simulated_ranks"] = dist.get_world_size()
    if dist.get_rank() == 0:
        print(PREFIX + json.dumps(summary), flush=True)


def count_parameters(
    models: list[torch.nn.Module], counts: Callable[[torch.nn.Parameter], bool] | None = None
) -> Counts:
    """Parameters of the whole model as it was built, each counted once; those that ``counts`` says.

    Every rank must call. Replicas are left out: data-parallel ones, tensor-parallel ones of
    parameters that are not split, and the second copy of tied embeddings.
    """
    counted = torch.zeros(3, dtype=torch.float64, device=torch.cuda.current_device())
    for model in models:
        for name, parameter in model.named_parameters():
            if getattr(parameter, "shared", False) or not _is_counted_here(parameter):
                continue
            if counts is not None and not counts(parameter):
                continue
            kind = 2 if ".adjugate_experts." in name else 1 if ".experts." in name else 0
            counted[kind] += parameter.numel()
    dist.all_reduce(counted)
    dense, experts, adjugates = (int(n) for n in counted.tolist())
    return Counts(dense=dense, experts=experts, adjugates=adjugates)


def _is_counted_here(parameter: torch.nn.Parameter) -> bool:
    split = getattr(parameter, "tensor_model_parallel", False)
    if getattr(parameter, "allreduce", True):
        replica = mpu.get_data_parallel_rank(with_context_parallel=True)
        tp_rank = mpu.get_tensor_model_parallel_rank()
    else:
        replica = mpu.get_expert_data_parallel_rank()
        tp_rank = mpu.get_expert_tensor_parallel_rank()
    return bool(replica == 0 and (split or tp_rank == 0))
