"""Runs on a rank: a recorded run whose routers never choose some of the experts."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import torch

from tests.integration.recorded_run import train

GRADIENTS = "idle_gradients"


def train_skewed(folder: str, argv: list[str], idle: list[int]) -> None:
    """Recorded training in which no token goes to the ``idle`` experts, on any layer.

    Every rank leaves the largest gradient of each parameter of its idle experts and adjugates,
    over all iterations, and -1 for one without gradient.
    """
    from megatron.core.transformer.moe.router import TopKRouter
    from megatron.training import training

    original = TopKRouter.gating

    def gating(self: Any, hidden: Any) -> Any:
        logits = original(self, hidden)
        # Its sigmoid, and its softmax, is 0.
        return logits.index_fill(-1, torch.tensor(idle), -1e4)

    TopKRouter.gating = gating
    largest: dict[str, float] = {}
    step = training.train_step

    def train_step(
        forward: Any, data: Any, model: Any, optimizer: Any, *rest: Any, **named: Any
    ) -> Any:
        update = optimizer.step

        def look_and_step() -> Any:
            for name, gradient in _of_experts(model, idle):
                found = -1.0 if gradient is None else float(gradient.abs().max())
                largest[name] = max(largest.get(name, found), found)
            return update()

        optimizer.step = look_and_step
        try:
            return step(forward, data, model, optimizer, *rest, **named)
        finally:
            optimizer.step = update

    training.train_step = train_step
    train(folder, argv)
    rank = os.environ["RANK"]
    (Path(folder) / f"{GRADIENTS}{rank}.json").write_text(json.dumps(largest))


def _of_experts(model: Any, idle: list[int]) -> Any:
    """Name and gradient of what the idle experts of this rank have, and adjugates of theirs alone.

    8 experts in 4 groups.
    """
    from megatron.core import parallel_state

    from grove_megatron.moe.layer import GroveMoELayer

    layers = [m for chunk in model for m in chunk.modules() if isinstance(m, GroveMoELayer)]
    for number, layer in enumerate(layers):
        rank = parallel_state.get_expert_model_parallel_rank()
        groups = [g for g in range(4) if {2 * g, 2 * g + 1} <= set(idle)]
        for kind, total, which in (("experts", 8, idle), ("adjugate_experts", 4, groups)):
            local = total // parallel_state.get_expert_model_parallel_world_size()
            mine = [i - rank * local for i in which if i // local == rank]
            stacked = getattr(layer, kind).named_parameters()
            for (name, parameter), index in itertools.product(stacked, mine):
                assert parameter.shape[0] == local
                gradient = getattr(parameter, "main_grad", None)
                found = None if gradient is None else gradient[index]
                yield f"{number}.{kind}.{index}.{name}", found
