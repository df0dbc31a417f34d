"""Runs on a rank: real training, and the bytes of what it allocated beside what was planned."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

from tests.ranks import write_result

KINDS = ("weights", "gradients", "optimizer")


def train(folder: str, argv: list[str]) -> None:
    """``grove_megatron.pretrain`` with ``argv``."""
    from grove_megatron import pretrain

    _measure(folder, argv, pretrain.main)


def train_skewed(folder: str, argv: list[str]) -> None:
    """The same where no token goes to the last three of eight experts."""
    from megatron.core.transformer.moe.router import TopKRouter

    gating = TopKRouter.gating

    def skewed(self: Any, hidden: Any) -> Any:
        return gating(self, hidden).index_fill(-1, torch.tensor([5, 6, 7]), -1e4)

    TopKRouter.gating = skewed
    train(folder, argv)


def run_script(folder: str, argv: list[str]) -> None:
    """``grove_megatron.run`` with ``argv``, the script first."""
    from grove_megatron import run

    _measure(folder, argv, run.main)


def _measure(folder: str, argv: list[str], main: Callable[[], None]) -> None:
    from megatron.training import get_args, training

    from grove_megatron.benchmarks.memory import LiveBytes

    kept: dict[str, Any] = {}
    rows: list[list[int]] = []
    _watch_rows(rows)
    setup, choose = training.setup_model_and_optimizer, training.get_forward_backward_func
    megatrons_train = training.train

    def setup_model_and_optimizer(*rest: Any, **named: Any) -> Any:
        models, optimizer, scheduler = setup(*rest, **named)
        kept.update(models=models, optimizer=optimizer)
        return models, optimizer, scheduler

    def get_forward_backward_func(*rest: Any, **named: Any) -> Any:
        schedule = choose(*rest, **named)

        def measured(*args: Any, **named: Any) -> Any:
            rows.clear()
            with LiveBytes() as live:
                result = schedule(*args, **named)
            kept["activations"] = live.peak
            return result

        return measured

    def train(*rest: Any, **named: Any) -> Any:
        iteration, kept["flops"] = megatrons_train(*rest, **named)
        return iteration, kept["flops"]

    training.train = train
    training.setup_model_and_optimizer = setup_model_and_optimizer
    training.get_forward_backward_func = get_forward_backward_func
    sys.argv = ["pretrain", *argv]
    main()
    allocated = _allocated(kept["models"], kept["optimizer"])
    allocated["activations"] = kept["activations"]
    write_result(
        folder,
        {"allocated": allocated, "flops": kept["flops"], "planned": _planned(get_args(), rows)},
    )


def _watch_rows(rows: list[list[int]]) -> None:
    """Note how many rows every expert of this rank gets, call by call, whoever dispatches them."""
    from megatron.core.transformer.moe import token_dispatcher as megatrons

    from grove_megatron.moe.allgather_dispatcher import GroveAllGatherDispatcher
    from grove_megatron.moe.dispatcher import GroveTokenDispatcher

    def watch(dispatcher: Any, stage: str, tokens_per_expert: Callable[[Any, Any], Any]) -> None:
        original = getattr(dispatcher, stage)

        def watched(self: Any, *rest: Any, **named: Any) -> Any:
            result = original(self, *rest, **named)
            rows.append([int(count) for count in tokens_per_expert(self, result)])
            return result

        setattr(dispatcher, stage, watched)

    for ours in (GroveTokenDispatcher, GroveAllGatherDispatcher):
        watch(ours, "arrive", lambda self, _: self.work.tokens_per_expert)
    for theirs in (megatrons.MoEAlltoAllTokenDispatcher, megatrons.MoEAllGatherTokenDispatcher):
        watch(theirs, "dispatch_postprocess", lambda _, result: result[1])


def _allocated(models: list[Any], optimizer: Any) -> dict[str, int]:
    """Bytes of storages: a view is no memory of its own, and neither is a parameter twice."""
    weights = _storages(p for model in models for p in model.parameters())
    buffers = [b for m in models for b in (*m.buffers, *m.expert_parallel_buffers)]
    gradients = _storages(buffer.grad_data for buffer in buffers)
    states: list[torch.Tensor] = []
    for one in getattr(optimizer, "chained_optimizers", [optimizer]):
        # None where nothing is trained that it is for.
        for parameter, state in one.optimizer.state.items() if one.optimizer else ():
            states += [parameter, *(v for v in state.values() if torch.is_tensor(v))]
    held = {key: size for key, size in _storages(states).items() if key not in weights}
    parts = (weights, gradients, held)
    return {name: sum(part.values()) for name, part in zip(KINDS, parts, strict=True)}


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _with_rows(sizes: Any, rows: list[list[int]]) -> Any:
    """With the imbalance that there was, so that a comparison is about memory, not about luck."""
    from dataclasses import replace

    from grove_megatron.planner.peak.rank_sizes import RankSizes

    if not rows or not any(map(sum, rows)):
        return sizes
    pairs = sum(map(sum, rows)) / len(rows)
    fullest = sum(max(of_call) for of_call in rows) / sum(map(sum, rows)) * len(rows[0])
    training = replace(
        sizes.training, imbalance=pairs / RankSizes(sizes).pairs, expert_imbalance=fullest
    )
    return replace(sizes, training=training)


def _planned(args: Any, rows: list[list[int]]) -> dict[str, Any]:

    from megatron.core import mpu
    from megatron.training import theoretical_memory_usage as theory

    from grove_megatron.planner.flops import flops_per_token
    from grove_megatron.planner.memory import stage_memory
    from grove_megatron.planner.parameters import rank_parameters
    from grove_megatron.training.sizes import sizes_of

    balanced = sizes_of(args)
    sizes = _with_rows(balanced, rows)
    stage = mpu.get_pipeline_model_parallel_rank()
    counts = rank_parameters(sizes.model, sizes.layout)[stage]
    # As many bytes as Megatron takes for a parameter.
    each = 6 + 12 / sizes.layout.expert_copies if args.use_distributed_optimizer else 18
    tokens = args.train_iters * args.global_batch_size * args.seq_length
    memory = stage_memory(sizes)[stage]
    return {
        "bytes": memory.state,
        "parts": memory.activation_parts,
        "balanced": stage_memory(balanced)[stage].activations,
        "imbalance": sizes.training.imbalance,
        "parameters": counts.total,
        "flops": tokens * flops_per_token(sizes.model, args.seq_length),
        # Megatron's own, now that the run and its patches are over.
        "theory": theory.compute_weight_and_optimizer_memory(args) + each * counts.adjugates,
    }
