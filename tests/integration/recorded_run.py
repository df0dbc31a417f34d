"""Runs on a rank: real training through the launcher, with what it computed written down.

Recording only observes: it wraps ``train_step`` to keep its exact return values, and reads the
finished model.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch

from tests.ranks import write_result


def train(folder: str, argv: list[str]) -> None:
    """``grove_megatron.pretrain`` with ``argv``."""
    from grove_megatron import pretrain

    _record(folder, argv, pretrain.main)


def train_on_two_nodes(folder: str, argv: list[str]) -> None:
    """The same, on ranks that take themselves for those of two nodes."""
    os.environ["LOCAL_WORLD_SIZE"] = str(int(os.environ["WORLD_SIZE"]) // 2)
    train(folder, argv)


def train_stock_layers(folder: str, argv: list[str]) -> None:
    """The launcher with a layer spec that leaves Megatron's layers in place."""
    from grove_megatron import layer_spec

    layer_spec.adapt_spec = lambda spec, config: spec
    train(folder, argv)


def run_script(folder: str, argv: list[str]) -> None:
    """``grove_megatron.run`` with ``argv``, the script first."""
    from grove_megatron import run

    _record(folder, argv, run.main)


def run_stock(folder: str, argv: list[str]) -> None:
    """The script under Megatron and the CPU runtime alone: no flags, spec or builder of ours."""
    import runpy

    from grove_megatron.runtime import cpu

    def main() -> None:
        del sys.argv[0]
        with cpu():
            runpy.run_path(sys.argv[0], run_name="__main__")

    _record(folder, argv, main)


def _record(folder: str, argv: list[str], main: Any) -> None:
    from megatron.core.datasets.gpt_dataset import MockGPTLowLevelDataset
    from megatron.training import training

    # Of 100,000 mock documents every rank shuffles millions of samples, and trains on a hundred.
    MockGPTLowLevelDataset.size = 1000
    record: dict[str, Any] = {"losses": [], "grad_norms": [], "parameters": {}}
    original = training.train_step
    models: list[Any] = []

    def train_step(forward_step: Any, data: Any, model: Any, *rest: Any, **named: Any) -> Any:
        models[:] = model
        result = original(forward_step, data, model, *rest, **named)
        losses, _, _, _, _, grad_norm, *_ = result
        record["losses"].append({k: float(v) for k, v in losses.items()})
        record["grad_norms"].append(float(grad_norm) if grad_norm is not None else None)
        return result

    training.train_step = train_step
    _count_traffic()
    sys.argv = ["pretrain", *argv]
    try:
        main()
    except SystemExit as error:
        # How Megatron ends at --exit-interval.
        if error.code:
            raise
    record |= _describe(models)
    write_result(folder, record)


def _count_traffic() -> None:
    """Count, apart from the dispatcher's own counters, what a routing needs and what is sent."""
    from grove_megatron.moe.dispatcher import GroveTokenDispatcher

    original = GroveTokenDispatcher.dispatch_preprocess

    def dispatch_preprocess(self: Any, hidden: Any, routing_map: Any, probs: Any) -> Any:
        rows, packed = original(self, hidden, routing_map, probs)
        counted = self.__dict__.setdefault("counted", {"distinct": 0, "sent": 0})
        by_rank = routing_map.unflatten(1, (self.ep_size, -1))
        counted["distinct"] += int(by_rank.any(-1).sum())
        counted["sent"] += rows.shape[0]
        return rows, packed

    GroveTokenDispatcher.dispatch_preprocess = dispatch_preprocess


def _one_by_one(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters, those of stacked experts under the names SequentialMLP has for them."""
    for name, parameter in model.named_parameters():
        block, linear = name.rsplit(".", 2)[0], ".".join(name.rsplit(".", 2)[1:])
        if block.endswith("experts") and parameter.dim() == 3:
            for index, one in enumerate(parameter):
                yield f"{block}.local_experts.{index}.{linear}", one
        else:
            yield name, parameter


def _describe(models: list[Any]) -> dict[str, Any]:
    from megatron.core.utils import unwrap_model

    from grove_megatron.moe.layer import GroveMoELayer

    parameters, layers = {}, []
    for model in unwrap_model(models):
        for name, parameter in _one_by_one(model):
            raw = parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            parameters[name] = hashlib.sha256(raw).hexdigest()
        for name, module in model.named_modules():
            if isinstance(module, GroveMoELayer):
                dispatcher = module.token_dispatcher
                layers.append(
                    {"name": name, **vars(dispatcher.traffic), **getattr(dispatcher, "counted", {})}
                )
    return {"parameters": parameters, "layers": layers}
