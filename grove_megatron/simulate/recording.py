"""A router trace of a real job, of Megatron's routers or ours, seen by a hook of torch's."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

from ..report.trace import NONE, write_trace

Layers = dict[str, list[Tensor]]
"""[T, K] of every pass, by layer."""


@contextmanager
def record_trace(path: str | os.PathLike[str], *, evaluation: bool = False) -> Iterator[None]:
    """Record which experts the tokens choose, and write a trace at the end.

    Around whatever trains, on every rank; CUDA graphs replay a router without its hook, so train
    without them. Every token of every step is kept, in 4 bytes an expert, until rank 0 gathers and
    writes them: ranks are in the order of their expert-parallel ranks, each with its passes one
    after the other. Nothing is written where the block ends with an error.

    Args:
        path: of the file, on rank 0.
        evaluation: record the passes of evaluation, not those of training.

    Raises:
        Refusal: there were no such passes.
        OSError: it cannot be written.
    """
    from megatron.core.transformer.moe.router import TopKRouter

    seen = _Seen()

    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        # A pass that recompute runs again has no gradients the first time.
        trains = module.training and torch.is_grad_enabled()
        if isinstance(module, TopKRouter) and (not module.training if evaluation else trains):
            seen.add(module, output[1])

    handle = register_module_forward_hook(hook)
    try:
        yield
    except SystemExit as end:
        # As Megatron ends at --exit-interval.
        if not end.code:
            handle.remove()
            _write(path, seen)
        raise
    finally:
        handle.remove()
    _write(path, seen)


@dataclass
class _Seen:
    """What the routers of a rank chose, of how many experts and groups."""

    layers: Layers = field(default_factory=dict)
    experts: int = 0
    groups: int = 0

    def add(self, router: Any, map_TE: Tensor) -> None:
        """A pass of one router: [T, E] bool, with columns of local experts behind the others."""
        self.experts = getattr(router, "routed_experts", router.config.num_moe_experts)
        self.groups = getattr(router.config, "grove_num_groups", None) or 0
        name = f"mtp {router.layer_number}" if router.is_mtp_layer else f"{router.layer_number}"
        chosen = lists(map_TE.detach()[:, : self.experts])
        self.layers.setdefault(name, []).append(chosen.to("cpu", torch.int32))


def lists(map_TE: Tensor) -> Tensor:
    """[T, K] int64 of a routing map [T, E] bool: a token's experts, then ``trace.NONE``."""
    counts_T = map_TE.sum(1)
    most = max(1, int(counts_T.max())) if len(map_TE) else 1
    first_TK = map_TE.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
    places_K = torch.arange(most, device=map_TE.device)
    return first_TK.masked_fill(places_K >= counts_T[:, None], NONE)


def _write(path: str | os.PathLike[str], seen: _Seen) -> None:
    """Gather on rank 0, and write there."""
    from megatron.core import parallel_state

    part = (parallel_state.get_expert_model_parallel_rank(), seen)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(part, parts if dist.get_rank() == 0 else None)
    if dist.get_rank():
        return
    layers: Layers = {}
    for _, of_rank in sorted(parts, key=lambda part: part[0]):
        for name, passes in of_rank.layers.items():
            layers.setdefault(name, []).extend(passes)
    write_trace(
        path,
        {name: _joined(passes) for name, passes in layers.items()},
        experts=max(of_rank.experts for _, of_rank in parts),
        groups=max(of_rank.groups for _, of_rank in parts),
    )


def _joined(passes: list[Tensor]) -> Tensor:
    """[tokens of all, K]."""
    most = max(one.shape[1] for one in passes)
    pad = torch.nn.functional.pad
    return torch.cat([pad(one, (0, most - one.shape[1]), value=NONE) for one in passes])
