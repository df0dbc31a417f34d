"""``grove verify``: does the Megatron model compute what the authors' model computed?

Loads Hugging Face weights into the model that the launcher would train, at any parallel layout,
runs the inputs of a golden file through Megatron's own schedule, DDP and gradient finalisation,
and compares logits, loss and every gradient of the file.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from .hf_config import megatron_flags, read_config
from .hf_files import HfTensors
from .hf_names import UNUSED, NameTable, rows
from .local_names import LocalParameter, local_parameters
from .transforms import Transform

LOGIT_TOLERANCE = 1e-5
LOSS_TOLERANCE = 1e-6
GRAD_TOLERANCE = 1e-5
GRAD_PREFIX = "grad."


@dataclass(frozen=True)
class Report:
    """The worst errors over all ranks.

    max_logit_error is absolute, loss_error relative, max_grad_error relative to the largest entry
    of each gradient.
    """

    max_logit_error: float
    loss_error: float
    max_grad_error: float
    grads_compared: int
    grads_in_file: int

    @property
    def passed(self) -> bool:
        # Written so that NaN fails.
        return (
            self.max_logit_error <= LOGIT_TOLERANCE
            and self.loss_error <= LOSS_TOLERANCE
            and self.max_grad_error <= GRAD_TOLERANCE
            and self.grads_compared == self.grads_in_file
        )


@dataclass(frozen=True)
class Golden:
    """Inputs and results of the authors' model, from a safetensors file.

    input_ids, labels [B, S] int64; logits [B, S, V]; loss, the mean cross-entropy of the logits
    against the labels as they stand; gradients by Hugging Face parameter name.
    """

    input_ids: Tensor
    labels: Tensor
    logits: Tensor
    loss: Tensor
    grads: dict[str, Tensor]

    @classmethod
    def read(cls, file: Path) -> "Golden":
        """Raises ValueError that lists every tensor that is missing or unknown."""
        if not file.is_file():
            raise ValueError(f"--golden ({file}) is not a file")
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        grads = {
            name.removeprefix(GRAD_PREFIX): tensors.pop(name)
            for name in sorted(tensors)
            if name.startswith(GRAD_PREFIX)
        }
        wanted = {"input_ids", "labels", "logits", "loss"}
        problems = [f"{name} is missing" for name in sorted(wanted - set(tensors))]
        problems += [f"{name} is not known" for name in sorted(set(tensors) - wanted)]
        if problems:
            raise ValueError(f"--golden ({file}): " + "; ".join(problems))
        return cls(grads=grads, **tensors)


def verify(hf: Path, golden_file: Path, extra_flags: list[str]) -> Report:
    """Build, load, run, compare; every rank of the job calls this and gets the same report.

    Args:
        hf: Hugging Face model folder.
        golden_file: safetensors, see :class:`Golden`.
        extra_flags: Megatron flags, such as parallel sizes.

    Raises:
        ValueError: the files do not fit each other or the model.
    """
    config = read_config(hf)
    golden = Golden.read(golden_file)
    tensors = HfTensors(hf)
    table = NameTable(
        rows(config["num_key_value_heads"], bool(config.get("tie_word_embeddings", False)))
    )
    unknown = sorted(set(golden.grads) - tensors.names())
    if unknown:
        raise ValueError(f"--golden ({golden_file}) has gradients of unknown parameters: {unknown}")
    models, transformer = _build(config, golden, extra_flags, partial(_load, tensors, table))
    logits = _logits(models, golden)
    losses = _losses_and_gradients(models, transformer, golden)
    return _compare(models, tensors, table, golden, logits, losses)


def _build(
    config: dict[str, Any],
    golden: Golden,
    extra_flags: list[str],
    load: Callable[[list[Any]], None],
) -> tuple[list[Any], Any]:
    """The model the launcher would train, in fp32, wrapped in DDP."""
    from megatron.core import mpu
    from megatron.core.distributed import DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import (
        core_transformer_config_from_args,
        gpt_config_from_args,
    )
    from megatron.training.initialize import initialize_megatron

    from ..config import GroveTransformerConfig
    from ..training.builder import GroveGPTModelConfig
    from ..training.launch import parse_arguments

    sys.argv = [sys.argv[0], *_flags(config, golden, extra_flags)]
    args = parse_arguments()
    initialize_megatron()
    transformer = core_transformer_config_from_args(args, GroveTransformerConfig)
    transformer.finalize_model_grads_func = finalize_model_grads
    model_config = gpt_config_from_args(
        args, config=transformer, model_config_cls=GroveGPTModelConfig
    )

    def load_hook(models: list[Any]) -> list[Any]:
        load(models)
        return models

    model_config.pre_wrap_hooks.append(load_hook)
    assert mpu.model_parallel_is_initialized()
    models = model_config.get_builder_cls()(model_config).build_distributed_models(
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
        ddp_config=DistributedDataParallelConfig(),
        data_parallel_random_init=False,
    )
    return models, transformer


def _flags(config: dict[str, Any], golden: Golden, extra_flags: list[str]) -> list[str]:
    batch_size, sequence_length = golden.input_ids.shape
    parser = argparse.ArgumentParser(add_help=False)
    for name in ("tensor-model", "pipeline-model", "context"):
        parser.add_argument(f"--{name}-parallel-size", type=int, default=1)
    parser.add_argument("--num-layers-per-virtual-pipeline-stage", type=int, default=None)
    sizes, _ = parser.parse_known_args(extra_flags)
    tensor, pipeline = sizes.tensor_model_parallel_size, sizes.pipeline_model_parallel_size
    _check_layout(config, sequence_length, sizes)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    data = max(1, world_size // (tensor * pipeline))
    fixed = [
        *("--micro-batch-size", str(batch_size), "--global-batch-size", str(batch_size * data)),
        *("--seq-length", str(sequence_length), "--train-iters", "1", "--lr", "0"),
        *("--tokenizer-type", "NullTokenizer", "--transformer-impl", "local"),
        *("--attention-backend", "unfused", "--no-gradient-accumulation-fusion"),
        *("--no-masked-softmax-fusion", "--no-bias-swiglu-fusion", "--no-rope-fusion"),
        *("--no-persist-layer-norm", "--mock-data", "--no-create-attention-mask-in-dataloader"),
    ]
    # Megatron trains MoE with tensor parallelism only beside sequence parallelism.
    sequence_parallel = ["--sequence-parallel"] if tensor > 1 else []
    return [*megatron_flags(config), *fixed, *sequence_parallel, *extra_flags]


def _check_layout(config: dict[str, Any], sequence_length: int, sizes: Any) -> None:
    tensor = sizes.tensor_model_parallel_size
    flag = f"--tensor-model-parallel-size ({tensor})"
    problems = []
    for name, size in (("vocab_size", config["vocab_size"]), ("sequence", sequence_length)):
        if size % tensor:
            problems.append(f"{flag} does not divide {name} ({size}); use a size that does")
    if sizes.context_parallel_size > 1:
        problems.append(
            f"--context-parallel-size ({sizes.context_parallel_size}) is not supported by verify; "
            "use 1"
        )
    virtual = sizes.num_layers_per_virtual_pipeline_stage
    if virtual is not None:
        problems.append(
            f"--num-layers-per-virtual-pipeline-stage ({virtual}) is not supported by verify; "
            "remove it"
        )
    if problems:
        raise ValueError("; ".join(problems))


def _load(tensors: HfTensors, table: NameTable, models: list[Any]) -> None:
    """Copy every Hugging Face tensor to where it belongs; refuse leftovers on either side."""
    used: set[str] = set()
    problems: list[str] = []
    available = tensors.names()
    for parameter in local_parameters(models):
        names, transform = table.find(parameter.global_name)
        missing = [name for name in names if name not in available]
        used.update(names)
        if missing:
            problems += [
                f"{name} (absent) is needed by {parameter.global_name}" for name in missing
            ]
            continue
        found = ", ".join(f"{name} {tensors.shape(name)}" for name in names)
        wanted = f"{parameter.global_name} {tuple(parameter.tensor.shape)} on this rank"
        try:
            local = transform.local(
                [tensors.read(name) for name in names], parameter.tensor_parallel
            )
        except (ValueError, RuntimeError) as error:
            problems.append(f"{found} cannot make {wanted}: {error}")
            continue
        if local.shape != parameter.tensor.shape:
            problems.append(f"{found} makes shape {tuple(local.shape)}, not {wanted}")
            continue
        with torch.no_grad():
            parameter.tensor.copy_(local)
    used_anywhere, problems_anywhere = _union(used), _union(set(problems))
    leftover = {n for n in available - used_anywhere if not UNUSED.fullmatch(n)}
    everything = sorted(problems_anywhere) + [f"{n} is not used" for n in sorted(leftover)]
    if everything:
        raise ValueError("weights do not fit the model: " + "; ".join(everything))


def _union(mine: set[str]) -> set[str]:
    gathered: list[set[str]] = [set()] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return set().union(*gathered)


def _run_schedule(
    models: list[Any], golden: Golden, step: Callable[..., Any], **options: Any
) -> list[Any]:
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    batch_size, sequence_length = golden.input_ids.shape
    stored: list[Any] = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter([None]),
        model=models,
        num_microbatches=1,
        seq_length=sequence_length,
        micro_batch_size=batch_size,
        **options,
    )
    return stored


def _inputs(golden: Golden) -> tuple[Tensor, Tensor]:
    device = torch.cuda.current_device()
    positions = torch.arange(golden.input_ids.shape[1]).expand_as(golden.input_ids)
    return golden.input_ids.to(device), positions.to(device)


def _logits(models: list[Any], golden: Golden) -> Tensor | None:
    """[B, S, V] on the last pipeline stage, None elsewhere."""
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    ids, positions = _inputs(golden)

    def step(data: Iterator[None], model: Any) -> tuple[Tensor, Callable[..., Tensor]]:
        def whole(output: Tensor, non_loss_data: bool) -> Tensor:
            gathered: Tensor = gather_from_tensor_model_parallel_region(output)
            return gathered

        return model(ids, positions, None), whole

    for model in models:
        model.eval()
    with torch.no_grad():
        stored = _run_schedule(models, golden, step, forward_only=True, collect_non_loss_data=True)
    for model in models:
        model.train()
    return stored[0] if stored else None


def _losses_and_gradients(models: list[Any], transformer: Any, golden: Golden) -> Tensor | None:
    """Per-token losses [B, S] on the last stage; leaves reduced gradients in ``main_grad``."""
    ids, positions = _inputs(golden)
    labels = golden.labels.to(ids.device)
    kept: list[Tensor] = []

    def step(data: Iterator[None], model: Any) -> tuple[Tensor, Callable[..., Any]]:
        def loss(output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            kept.append(output.detach())
            total = output.float().sum()
            return total, torch.tensor(output.numel(), device=output.device), {"loss": total}

        return model(ids, positions, None, labels=labels), loss

    for model in models:
        model.zero_grad_buffer()
    _run_schedule(models, golden, step, forward_only=False)
    return kept[0] if kept else None


def _compare(
    models: list[Any],
    tensors: HfTensors,
    table: NameTable,
    golden: Golden,
    logits: Tensor | None,
    losses: Tensor | None,
) -> Report:
    from megatron.core import mpu

    logit_error = loss_error = grad_error = 0.0
    # The last pipeline stage computes both; every rank on it must have.
    if mpu.is_pipeline_last_stage():
        assert logits is not None
        assert losses is not None
        if logits.shape != golden.logits.shape:
            raise ValueError(
                f"logits of the model ({tuple(logits.shape)}) have another shape than those of "
                f"--golden ({tuple(golden.logits.shape)}); check vocab_size"
            )
        logit_error = _worst((logits.cpu().double() - golden.logits.double()).abs())
        expected = golden.loss.double().reshape(())
        loss_error = _worst((losses.cpu().double().mean() - expected).abs() / expected.abs())
    seen = {name: torch.zeros(g.numel(), dtype=torch.bool) for name, g in golden.grads.items()}
    for parameter in local_parameters(models):
        names, transform = table.find(parameter.global_name)
        if not any(name in golden.grads for name in names):
            continue
        shapes = [tensors.shape(name) for name in names]
        error = _grad_error(parameter, names, shapes, transform, golden.grads, seen)
        grad_error = max(grad_error, error)
    device = torch.cuda.current_device()
    worst = torch.tensor([logit_error, loss_error, grad_error], dtype=torch.float64, device=device)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    compared = 0
    for name in sorted(seen):
        everywhere = seen[name].to(device=device, dtype=torch.uint8)
        dist.all_reduce(everywhere, op=dist.ReduceOp.MAX)
        compared += bool(everywhere.all().item())
    return Report(*worst.tolist(), grads_compared=compared, grads_in_file=len(golden.grads))


def _grad_error(
    parameter: LocalParameter,
    names: tuple[str, ...],
    shapes: list[tuple[int, ...]],
    transform: Transform,
    grads: dict[str, Tensor],
    seen: dict[str, Tensor],
) -> float:
    """Worst relative error of one local parameter; marks the golden entries it has compared.

    The transform that made the parameter from Hugging Face tensors also makes, entry by entry,
    the expected gradient, the size to measure an error by, and which entry of which tensor it
    is. Tensors of which the file has no gradient take no part (their errors are weighed by 0).
    """
    expected, weight, owner, entry = [], [], [], []
    for i, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        grad = grads.get(name, torch.zeros(shape)).double()
        largest = float(grad.abs().max())
        # An all-zero gradient has no size of its own; it is compared absolutely.
        inverse = (1.0 / largest if largest > 0 else 1.0) if name in grads else 0.0
        expected.append(grad)
        weight.append(torch.full(shape, inverse, dtype=torch.float64))
        owner.append(torch.full(shape, i))
        entry.append(torch.arange(grad.numel()).reshape(shape))
    tp = parameter.tensor_parallel
    found = parameter.main_grad.detach().cpu().double()
    error = (found - transform.local(expected, tp)).abs() * transform.local(weight, tp)
    owner_here, entry_here = transform.local(owner, tp), transform.local(entry, tp)
    for i, name in enumerate(names):
        if name in seen:
            seen[name][entry_here[owner_here == i]] = True
    return _worst(error)


def _worst(error: Tensor) -> float:
    return float(torch.nan_to_num(error, nan=float("inf"), posinf=float("inf")).max())
