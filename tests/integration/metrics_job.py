"""Runs on a rank: real training, with every routing of a training step written down.

What is written is which experts every token chose, layer by layer, seen where rows are dispatched;
the counters under test are not asked.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from tests.ranks import write_result


def train_and_keep_routing(folder: str, argv: list[str]) -> None:
    """``grove_megatron.pretrain``; leaves {steps, all_reduces, board, ep_rank, tracker, ...}.

    ``steps`` has for every iteration {layer: [the experts of a token, of every token]};
    ``all_reduces`` how many Megatron's logging of it made; ``board`` what the last rank wrote to
    TensorBoard, {tag: {iteration: value}}.
    """
    from megatron.core import mpu
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker
    from megatron.training import get_args, training

    from grove_megatron import pretrain
    from grove_megatron.moe.layer import GroveMoELayer
    from grove_megatron.simulate.recording import record_trace
    from grove_megatron.training.reporting import groups_per_token

    steps: list[dict[str, list[list[int]]]] = []
    layers: dict[str, Any] = {}
    seen: dict[str, Any] = {"inside": False}
    train_step, preprocess = training.train_step, GroveMoELayer.preprocess

    def watched_step(*args: Any, **named: Any) -> Any:
        steps.append({})
        seen["ep_rank"] = mpu.get_expert_model_parallel_rank()
        seen["inside"] = True
        try:
            return train_step(*args, **named)
        finally:
            seen["inside"] = False

    def watched_preprocess(self: Any, hidden: Any, probs: Any, routing_map: torch.Tensor) -> Any:
        name = f"{'mtp ' if self.is_mtp_layer else ''}{self.layer_number}"
        layers[name] = self
        # A pass that recompute runs again has no gradients the first time.
        if seen["inside"] and torch.is_grad_enabled():
            chosen = [row.nonzero()[:, 0].tolist() for row in routing_map]
            steps[-1].setdefault(name, []).extend(chosen)
        return preprocess(self, hidden, probs, routing_map)

    training.train_step, GroveMoELayer.preprocess = watched_step, watched_preprocess
    all_reduces, board = _count_all_reduces_of_logging(), _a_tensorboard()
    sys.argv = ["pretrain", *argv]
    with record_trace(Path(folder) / "trace.safetensors"):
        pretrain.main()
    result = {
        "steps": steps,
        "all_reduces": all_reduces,
        "board": board,
        "flops_count": groups_per_token(get_args()),
        "ep_rank": seen["ep_rank"],
        "tracker": type(get_moe_metrics_tracker()).__name__,
        "counting": {name: layer.counts is not None for name, layer in layers.items()},
        "traffic": {name: vars(layer.token_dispatcher.traffic) for name, layer in layers.items()},
    }
    write_result(folder, result)


def _a_tensorboard() -> dict[str, dict[int, float]]:
    """What will be written to TensorBoard, which need not be installed."""
    import torch.distributed as dist
    from megatron.training import training

    written: dict[str, dict[int, float]] = {}

    class Board:
        def add_scalar(self, tag: str, value: Any, iteration: int) -> None:
            written.setdefault(tag, {})[iteration] = float(value)

        def flush(self) -> None:
            pass

    def get_tensorboard_writer() -> Board | None:
        return Board() if dist.get_rank() == dist.get_world_size() - 1 else None

    training.get_tensorboard_writer = get_tensorboard_writer
    return written


def _count_all_reduces_of_logging() -> list[int]:
    """A list that gets the number of every iteration."""
    import torch.distributed as dist
    from megatron.training import training

    counted: list[int] = []
    training_log, all_reduce = training.training_log, dist.all_reduce

    def counted_reduce(*args: Any, **named: Any) -> Any:
        counted[-1] += 1
        return all_reduce(*args, **named)

    def counted_log(*args: Any, **named: Any) -> Any:
        counted.append(0)
        dist.all_reduce = counted_reduce
        try:
            return training_log(*args, **named)
        finally:
            dist.all_reduce = all_reduce

    training.training_log = counted_log
    return counted
