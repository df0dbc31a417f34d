"""What a record says of the run it is of: sizes of the counted layers, and the flags to show."""

import time
import uuid
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .. import __version__
from ..checkpoint.layout import is_remote
from ..compat import megatron_version
from ..config import GroveTransformerConfig, grove_defaults
from ..model.parameters import Counts
from ..parts import registry
from ..report.record import FOLDER, Run

_SHOWN = (
    *("num_layers", "mtp_num_layers", "hidden_size", "num_attention_heads", "seq_length"),
    *("micro_batch_size", "global_batch_size", "train_iters", "lr", "seed"),
    *("num_experts", "moe_router_topk", "moe_ffn_hidden_size"),
    *("moe_router_num_groups", "moe_router_group_topk"),
    "moe_shared_expert_intermediate_size",
    *("moe_router_dtype", "moe_router_load_balancing_type", "moe_aux_loss_coeff"),
    *("moe_z_loss_coeff", "moe_router_enable_expert_bias", "moe_router_bias_update_rate"),
    *("moe_expert_capacity_factor", "moe_token_drop_policy", "moe_token_dispatcher_type"),
    *("world_size", "data_parallel_size", "tensor_model_parallel_size", "sequence_parallel"),
    *("pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"),
    *("context_parallel_size", "expert_model_parallel_size", "expert_tensor_parallel_size"),
    *("bf16", "fp16", "use_distributed_optimizer", "overlap_moe_expert_parallel_comm"),
    *("recompute_granularity", "recompute_modules", "wandb_exp_name"),
)


def describe_run(
    args: Namespace,
    config: GroveTransformerConfig,
    layers: tuple[str, ...],
    parameters: Counts,
    before: int,
) -> Run:
    """The run that this process is part of.

    Args:
        args: Megatron's.
        config: of the model.
        layers: names of the counted layers.
        parameters: see ``summary.count_parameters``.
        before: iterations before the first that was counted.
    """
    assert config.num_moe_experts is not None
    return Run(
        id=uuid.uuid4().hex[:8],
        started=time.time(),
        # Iterations that Megatron is told to skip come before any that is counted.
        resumed=min(before, getattr(args, "iteration", before)),
        layers=layers,
        experts=config.num_moe_experts,
        groups=config.grove_num_groups or 0,
        topk=config.moe_router_topk,
        ranks=config.expert_model_parallel_size,
        dispatcher=config.moe_token_dispatcher_type,
        world_size=dist.get_world_size(),
        row_bytes=config.hidden_size * config.params_dtype.itemsize,
        drops=registry.one(config, "drop") is not None,
        parameters=(parameters.dense, parameters.experts, parameters.adjugates),
        settings=_settings(args),
        local={p.name: p.columns(config) for p in registry.active(config, "local")},
    )


def record_folder(args: Namespace) -> Path | None:
    """Where the record goes: ``--grove-metrics-dir``, or inside ``--save``, or nowhere."""
    if args.grove_metrics_dir is not None:
        return Path(args.grove_metrics_dir)
    # A checkpoint in an object store (msc://) is no place for a file that grows.
    if args.save is None or is_remote(args, args.save):
        return None
    return Path(args.save) / FOLDER


def _settings(args: Namespace) -> dict[str, Any]:
    names = [*_SHOWN, *grove_defaults()]
    given = {name: getattr(args, name, None) for name in names}
    shown = {
        name.replace("_", "-"): value if isinstance(value, int | float | str) else str(value)
        for name, value in given.items()
        if value is not None and value is not False
    }
    return shown | {
        "versions": f"grove_megatron {__version__}, megatron-core "
        f"{megatron_version() or 'unknown'}, torch {torch.__version__}"
    }
