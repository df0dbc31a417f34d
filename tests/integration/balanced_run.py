"""Runs on a rank: a recorded run that also writes down what every router counted and became.

Tokens are counted apart from the router's own buffer, from the routing map it counts.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch

from tests.integration import recorded_run


def train(folder: str, argv: list[str]) -> None:
    """``grove_megatron.pretrain``; leaves ``balance<rank>.json`` beside what it recorded."""
    _record(folder)
    recorded_run.train(folder, argv)


def run_script(folder: str, argv: list[str]) -> None:
    """``grove_megatron.run`` with the script first; the same."""
    _record(folder)
    recorded_run.run_script(folder, argv)


def _record(folder: str) -> None:
    from megatron.training import training

    from grove_megatron.moe.router import GroveRouter

    count, step = GroveRouter._apply_expert_bias, training.train_step
    # Of every iteration: layer -> tokens per expert, and the bits of the bias after it.
    history: list[dict[str, Any]] = []

    def counted(self: Any, routing_map: torch.Tensor, padding_mask: Any = None) -> None:
        if torch.is_grad_enabled():
            assert self.training
            assert padding_mask is None
            self.__dict__.setdefault("seen", []).append(routing_map.sum(0))
        count(self, routing_map, padding_mask)

    def train_step(forward_step: Any, data: Any, model: Any, *rest: Any, **named: Any) -> Any:
        result = step(forward_step, data, model, *rest, **named)
        routers = {
            f"{'mtp ' if m.is_mtp_layer else ''}{m.layer_number}": m
            for chunk in model
            for m in chunk.modules()
            if isinstance(m, GroveRouter)
        }
        history.append(
            {
                layer: {
                    "counts": sum(router.__dict__.pop("seen")).tolist(),
                    "bias": router.expert_bias.view(torch.int32).tolist(),
                    "left": int(router.local_tokens_per_expert.sum()),
                }
                for layer, router in routers.items()
            }
        )
        path = Path(folder) / f"balance{os.environ['RANK']}.json"
        path.write_text(json.dumps(history))
        return result

    GroveRouter._apply_expert_bias = counted
    training.train_step = train_step
