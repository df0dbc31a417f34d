"""``grove bench step``: a training step of a GPT model through megatron.training.

The variants are built one after another in one initialised job, each with its own DDP wrapper and
optimizer, from the same initial weights; their steps are interleaved. Every step trains on the same
mock batches, loaded beforehand.
"""

import copy
import itertools
import sys
import tempfile
from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.distributed as dist
from megatron.core import mpu
from megatron.core.distributed import finalize_model_grads
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.rerun_state_machine import RerunDataIterator
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.utils import get_model_config, unwrap_model
from megatron.training.argument_utils import (
    gpt_config_from_args,
    pretrain_cfg_container_from_args,
)
from megatron.training.initialize import initialize_megatron, set_jit_fusion_options
from megatron.training.models.gpt import GPTModelConfig
from megatron.training.training import setup_model_and_optimizer, train_step
from torch import Tensor
from torch.utils.data import default_collate

from ..config import grove_defaults
from ..layer_spec import grove_layer_spec, swap_classes
from ..moe.experts import GroupedExperts
from ..moe.layer import GroveMoELayer
from ..planner.flops import flops_per_token
from ..training import gpt
from ..training.builder import GroveGPTModelConfig
from ..training.launch import parse_arguments
from ..training.sizes import sizes_of
from ..training.transformer_config import transformer_config
from . import ranks
from .harness import Subject, cuda_clock, interleave, wall_clock
from .metrics_cost import measure_metrics
from .refusals import HEAD
from .report import Findings
from .shape import Settings
from .step_findings import findings
from .variants import GROVE_KERNEL, NaiveGroveLayer
from .watch_cost import measure_watch

_BATCHES = 4
# Relative. In bf16 two orders of summation differ by 1.6e-5 on a CPU (256 tokens of 256, 2 layers),
# and a GPU has other orders yet.
_LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 5e-4}


def flags(settings: Settings) -> list[str]:
    """The launcher's command line for this shape; the user's own flags come last and win."""
    s = settings.shape
    text = (
        f"--num-layers {s.layers} --hidden-size {s.hidden} --num-attention-heads {s.hidden // HEAD}"
        f" --seq-length {s.tokens} --max-position-embeddings {s.tokens}"
        f" --num-experts {s.experts} --moe-ffn-hidden-size {s.expert_width}"
        f" --moe-router-topk {s.topk} --moe-router-dtype fp32"
        " --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2"
        f" --moe-token-dispatcher-type alltoall --expert-model-parallel-size {settings.ranks}"
        f" --grove-num-groups {s.groups} --grove-adjugate-ffn-hidden-size {s.adjugate_width}"
        f" --grove-kernel {GROVE_KERNEL[settings.kernels[0]]}"
        " --position-embedding-type rope --swiglu --normalization RMSNorm --disable-bias-linear"
        # Nothing random in a step, so that first losses can be compared.
        " --hidden-dropout 0 --attention-dropout 0"
        " --untie-embeddings-and-output-weights --transformer-impl local"
        " --mock-data --tokenizer-type NullTokenizer --vocab-size 256 --split 100,0,0"
        " --no-create-attention-mask-in-dataloader --num-workers 0"
        f" --micro-batch-size 1 --global-batch-size {settings.ranks}"
        # A rate at which the routing stays what it was.
        f" --train-iters 1000000 --lr 1e-7 --eval-interval 1000000 --seed {settings.seed + 1}"
    )
    dtype = ["--bf16"] if s.dtype == "bf16" else []
    return [*text.split(), *dtype, *settings.megatron_flags]


@dataclass(frozen=True)
class Trainee:
    """A model with what a training step of it needs."""

    models: list[Any]
    optimizer: Any
    scheduler: Any
    data: RerunDataIterator

    def step(self) -> float:
        """One step of megatron.training; returns the loss."""
        losses, *_ = train_step(
            gpt.forward_step,
            self.data,
            self.models,
            self.optimizer,
            self.scheduler,
            get_model_config(self.models[0]),
            get_forward_backward_func(),
            iteration=0,
        )
        return float(losses["lm loss"])


def measure(settings: Settings) -> Findings:
    """Initialise Megatron once, build every variant, and time their steps."""
    with tempfile.TemporaryDirectory() as folder:
        return _measure(settings, folder)


def _measure(settings: Settings, folder: str) -> Findings:
    sys.argv = [sys.argv[0], *flags(settings)]
    args = parse_arguments()
    counts = args.grove_metrics_interval != 0
    if counts:
        args.grove_metrics_dir = args.grove_metrics_dir or folder
    initialize_megatron(get_embedding_ranks=gpt.embedding_ranks)
    set_jit_fusion_options(tp_size=args.tensor_model_parallel_size)
    batches = _batches()
    grove = _trainee(args, "grove", settings, batches, None)
    weights = unwrap_model(grove.models)[0].state_dict()
    trainees = {
        name: grove if name == "grove" else _trainee(args, name, settings, batches, weights)
        for name in settings.variants
    }
    first = {name: trainee.step() for name, trainee in trainees.items()}
    _check_losses(first, settings.shape.dtype)
    clock = cuda_clock if ranks.cuda_is_used() else wall_clock
    samples = interleave(
        [Subject(name=name, run=t.step) for name, t in trainees.items()],
        rounds=settings.rounds,
        warmup=settings.warmup,
        clock=clock,
        together=ranks.together,
        slowest=ranks.slowest,
    )
    cost = None
    if counts:
        cost = measure_metrics(grove.step, rounds=settings.rounds, clock=clock)
    watch = measure_watch(grove.step, rounds=settings.rounds, clock=clock)
    routed = _routed(grove)
    dist.destroy_process_group()
    flops = _flop_ratio(args, routed.adjugates)
    return findings(settings, samples, routed.rows, flops, cost, watch)


def _batches() -> list[dict[str, Tensor]]:
    """A few microbatches of this rank's own."""
    rank, size = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
    train, _, _ = gpt.datasets([_BATCHES * size, 0, 0])
    return [default_collate([train[rank + i * size]]) for i in range(_BATCHES)]


def _trainee(
    args: Namespace,
    variant: str,
    settings: Settings,
    batches: list[dict[str, Tensor]],
    weights: dict[str, Any] | None,
) -> Trainee:
    """Build one variant as Megatron's ``pretrain`` does; ``weights`` replace its own."""
    args = copy.copy(args)
    if variant in ("plain", "grove-dispatch"):
        for name, default in grove_defaults().items():
            setattr(args, name, default)
        args.grove_dispatch = variant == "grove-dispatch"
    if variant == "plain":
        args.spec = None
    config = transformer_config(args)
    config.grove_kernel = GROVE_KERNEL[settings.kernels[0]]
    is_ours = variant in ("grove-dispatch", "grove")
    kind = GroveGPTModelConfig if is_ours else GPTModelConfig
    model_config = gpt_config_from_args(args, config=config, model_config_cls=kind)
    if not is_ours:
        model_config.transformer_layer_spec = partial(_spec, settings.kernels[0])
    if weights is not None:
        model_config.pre_wrap_hooks.append(partial(_load, weights))
    models, optimizer, scheduler = setup_model_and_optimizer(
        ModelType.encoder_or_decoder,
        cfg_container=pretrain_cfg_container_from_args(args, model_config),
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )
    # What Megatron's train() sets before the first step.
    finished = get_model_config(models[0])
    finished.grad_scale_func = optimizer.scale_loss
    finished.finalize_model_grads_func = finalize_model_grads
    for model in models:
        model.train()
    return Trainee(models, optimizer, scheduler, RerunDataIterator(itertools.cycle(batches)))


def _spec(kernel: str, model_config: GPTModelConfig, vp_stage: int | None = None) -> Any:
    """Megatron's decoder block, or the Grove one with naive layers; experts as ``kernel`` says."""
    swaps: dict[Any, Any] = {GroveMoELayer: NaiveGroveLayer}
    if kernel in ("grouped", "triton"):
        swaps[SequentialMLP] = GroupedExperts
    # The bare config: our spec would otherwise insist on its own layers.
    return swap_classes(grove_layer_spec(model_config.transformer, vp_stage), swaps)


def _load(weights: dict[str, Any], models: list[Any]) -> list[Any]:
    """A hook: give a model the weights it shares with grove."""
    (model,) = models
    wanted = set(model.state_dict())
    model.load_state_dict({k: v for k, v in weights.items() if k in wanted}, strict=True)
    return models


def _check_losses(losses: dict[str, float], dtype: str) -> None:
    """naive computes what grove computes, and grove-dispatch what plain does, at least at first."""
    from .agreement import DisagreementError

    for other, name in (("naive", "grove"), ("grove-dispatch", "plain")):
        if {other, name} <= set(losses):
            error = abs(losses[other] / losses[name] - 1)
            if not error <= _LOSS_TOLERANCE[dtype]:
                raise DisagreementError(f"first losses {losses}: {other} differs from {name}")


@dataclass(frozen=True)
class Routed:
    """Of a token in a layer of grove, on average: rows sent, and adjugates evaluated."""

    rows: float
    adjugates: float


def _routed(trainee: Trainee) -> Routed:
    layers = [m for m in trainee.models[0].modules() if isinstance(m, GroveMoELayer)]
    traffic = [layer.token_dispatcher.traffic for layer in layers]
    counted = [(t.rows, t.adjugate_pairs, t.tokens) for t in traffic]
    rows, pairs, tokens = ranks.total([sum(column) for column in zip(*counted, strict=True)])
    return Routed(rows / tokens, pairs / tokens)


def _flop_ratio(args: Namespace, adjugates: float) -> float | None:
    """The operations of a step of grove over those of plain, as the planner counts them.

    None where Megatron's flags ask for a model that it does not know.
    """
    try:
        model = sizes_of(args).model
    except ValueError:
        return None
    ours, plain = (flops_per_token(model, args.seq_length, groups=g) for g in (adjugates, 0.0))
    return ours / plain
