"""Build the Megatron model that a job would train, put weights in it, run it."""

import argparse
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model.architecture import Architecture
from .hf_names import NameTable
from .layout import RELEASE, TRACKER
from .local_names import local_biases, local_parameters
from .megatron_args import GROVE_LAYER_SPEC, megatron_flags
from .weights import Weights

Load = Callable[[list[Any]], None]

OF_ONE_PASS = (
    *("--train-iters", "1", "--lr", "0", "--eval-interval", "1", "--eval-iters", "0"),
    *("--tokenizer-type", "NullTokenizer", "--mock-data"),
    *("--transformer-impl", "local", "--attention-backend", "unfused"),
    *("--no-gradient-accumulation-fusion", "--no-masked-softmax-fusion"),
    *("--no-bias-swiglu-fusion", "--no-persist-layer-norm"),
    "--no-create-attention-mask-in-dataloader",
)
"""Flags of a job that computes once, by Megatron's plain modules."""


class ModelRun:
    """One model on this rank's part of a job, in fp32 where the flags say nothing else.

    Args:
        architecture: of the model.
        inputs: token ids [B, S] int64, on every data-parallel rank; or their shape alone, where
            somebody else runs the model.
        extra_flags: Megatron flags, such as parallel sizes.
        load: puts the weights in, before DDP wraps the model; every rank calls it.
        gradients: whether there will be any; without, half the memory.

    Attributes:
        models: this rank's chunks.
        router_logits: [B S, E] by the number of this rank's MoE layers, see :meth:`logits`.

    Raises:
        ValueError: a layout that this cannot run.
    """

    def __init__(
        self,
        architecture: Architecture,
        inputs: Tensor | tuple[int, int],
        extra_flags: list[str],
        load: Load,
        *,
        gradients: bool = True,
    ):
        from megatron.core.distributed import DistributedDataParallelConfig, finalize_model_grads
        from megatron.core.process_groups_config import ProcessGroupCollection
        from megatron.training.argument_utils import (
            core_transformer_config_from_args,
            gpt_config_from_args,
        )

        from ..config import GroveTransformerConfig
        from ..training.builder import GroveGPTModelConfig

        ids = torch.zeros(inputs, dtype=torch.int64) if isinstance(inputs, tuple) else inputs
        self._shape = tuple(ids.shape)
        args = start_megatron([*_flags(architecture, self._shape, extra_flags), *extra_flags])
        # The interleaved schedule takes as many microbatches as there are stages, or more.
        virtual = args.virtual_pipeline_model_parallel_size is not None
        self._microbatches = args.pipeline_model_parallel_size if virtual else 1
        self._input_ids = ids.to(torch.cuda.current_device())
        self._positions = torch.arange(self._shape[1]).expand(self._shape).to(self._input_ids)
        transformer = core_transformer_config_from_args(args, GroveTransformerConfig)
        transformer.finalize_model_grads_func = finalize_model_grads
        model_config = gpt_config_from_args(
            args, config=transformer, model_config_cls=GroveGPTModelConfig
        )

        biases: dict[str, Tensor] = {}

        def load_hook(models: list[Any]) -> list[Any]:
            load(models)
            biases.update((name, bias.clone()) for name, bias in local_biases(models))
            return models

        model_config.pre_wrap_hooks.append(load_hook)
        self.models: list[Any] = model_config.get_builder_cls()(
            model_config
        ).build_distributed_models(
            pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
            ddp_config=DistributedDataParallelConfig(),
            wrap_with_ddp=gradients,
            data_parallel_random_init=False,
        )
        # --bf16 rounds all of a model, these too, and they select.
        for name, bias in local_biases(self.models):
            bias.data = biases[name]
        self.router_logits: dict[int, Tensor] = {}

    def logits(self, *, routers: bool = False) -> Tensor | None:
        """[B, S, V] on the last pipeline stage, None elsewhere.

        Args:
            routers: keep those of routers too, in ``router_logits``.
        """
        from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

        def step(data: Iterator[None], model: Any) -> tuple[Tensor, Callable[..., Tensor]]:
            def whole(output: Tensor, non_loss_data: bool) -> Tensor:
                gathered: Tensor = gather_from_tensor_model_parallel_region(output)
                return gathered

            return model(self._input_ids, self._positions, None), whole

        hooks = [
            module.register_forward_hook(self._keep_logits)
            for model in self.models
            for name, module in model.named_modules()
            if routers and name.endswith(".mlp.router")
        ]
        try:
            return self._evaluated(step)
        finally:
            for hook in hooks:
                hook.remove()

    def _keep_logits(self, router: Any, inputs: tuple[Tensor, ...], _: Any) -> None:
        """As they are handed on to the next layer, where there is such a thing."""
        from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

        handed = getattr(router, "handed", None)
        logits: Tensor = router.gating(inputs[0]) if handed is None else handed.logits
        if router.config.sequence_parallel:
            logits = gather_from_sequence_parallel_region(logits)
        batch_first = logits.transpose(0, 1)
        self.router_logits[router.layer_number - 1] = batch_first.flatten(0, 1)

    def losses_and_gradients(self, labels: Tensor) -> Tensor | None:
        """Per-token losses [B, S] on the last stage; leaves reduced gradients in ``main_grad``.

        Args:
            labels: [B, S] int64.
        """
        labels = labels.to(self._input_ids.device)
        kept: list[Tensor] = []

        def step(data: Iterator[None], model: Any) -> tuple[Tensor, Callable[..., Any]]:
            def loss(output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
                kept.append(output.detach())
                total = output.float().sum()
                return total, torch.tensor(output.numel(), device=output.device), {"loss": total}

            return model(self._input_ids, self._positions, None, labels=labels), loss

        for model in self.models:
            model.zero_grad_buffer()
        self._schedule(step, forward_only=False)
        return kept[0] if kept else None

    def token_losses(self, ids: Tensor, labels: Tensor) -> Tensor | None:
        """Losses [B, S] of every token, on the last stage; without gradients, in evaluation.

        Args:
            ids, labels: of the shape that the run was made for, int64.
        """
        ids, labels = (tensor.to(self._input_ids) for tensor in (ids, labels))

        def step(data: Iterator[None], model: Any) -> tuple[Tensor, Callable[..., Tensor]]:
            return model(ids, self._positions, None, labels=labels), lambda output, **_: output

        return self._evaluated(step)

    def _evaluated(self, step: Callable[..., Any]) -> Tensor | None:
        """What ``step`` gives on the last stage, without gradients; None elsewhere."""
        for model in self.models:
            model.eval()
        with torch.no_grad():
            stored = self._schedule(step, forward_only=True, collect_non_loss_data=True)
        for model in self.models:
            model.train()
        return stored[0] if stored else None

    def _schedule(self, step: Callable[..., Any], **options: Any) -> list[Any]:
        from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

        batch_size, sequence_length = self._shape
        # The inputs are here on every stage; a schedule only hands the iterator on.
        data = [iter([None]) for _ in self.models]
        stored: list[Any] = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=data if len(data) > 1 else data[0],
            model=self.models,
            num_microbatches=self._microbatches,
            seq_length=sequence_length,
            micro_batch_size=batch_size,
            **options,
        )
        return stored


def start_megatron(flags: list[str]) -> Namespace:
    """Megatron's arguments and process groups; the second model of a process gets the former."""
    from megatron.core import mpu
    from megatron.training.global_vars import unset_global_variables
    from megatron.training.initialize import initialize_megatron

    from ..training.launch import parse_arguments

    again = mpu.model_parallel_is_initialized()
    if again:
        unset_global_variables()
    sys.argv = [sys.argv[0], *flags]
    args = parse_arguments()
    if not again:
        initialize_megatron()
    return args


def _flags(architecture: Architecture, shape: tuple[int, ...], extra_flags: list[str]) -> list[str]:
    batch_size, sequence_length = shape
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("tensor-model", "pipeline-model", "context"):
        parser.add_argument(f"--{name}-parallel-size", type=int, default=1)
    parser.add_argument("--num-layers-per-virtual-pipeline-stage", type=int)
    parser.add_argument("--num-virtual-stages-per-pipeline-rank", type=int)
    sizes, _ = parser.parse_known_args(extra_flags)
    tensor, pipeline = sizes.tensor_model_parallel_size, sizes.pipeline_model_parallel_size
    _check_layout(architecture, sequence_length, tensor, sizes.context_parallel_size)
    virtual = (
        sizes.num_layers_per_virtual_pipeline_stage or sizes.num_virtual_stages_per_pipeline_rank
    )
    batches = pipeline if virtual else 1
    data = max(1, int(os.environ.get("WORLD_SIZE", "1")) // (tensor * pipeline))
    fixed = [
        *("--micro-batch-size", str(batch_size)),
        *("--global-batch-size", str(batch_size * data * batches)),
        *("--seq-length", str(sequence_length), "--no-rope-fusion", *OF_ONE_PASS),
    ]
    # Without groups: Megatron's own layers, with a norm that takes sequence parallelism.
    spec = ["--spec", *GROVE_LAYER_SPEC]
    # Megatron trains MoE with tensor parallelism only beside sequence parallelism.
    sequence_parallel = ["--sequence-parallel"] if tensor > 1 else []
    return [*megatron_flags(architecture), *fixed, *spec, *sequence_parallel]


def _check_layout(
    architecture: Architecture, sequence_length: int, tensor: int, context: int
) -> None:
    flag = f"--tensor-model-parallel-size ({tensor})"
    problems = []
    for name, size in (("vocab_size", architecture.vocab_size), ("sequence", sequence_length)):
        if size % tensor:
            problems.append(f"{flag} does not divide {name} ({size}); use a size that does")
    if context > 1:
        problems.append(
            f"--context-parallel-size ({context}) needs CUDA and TransformerEngine, and this runs "
            "Megatron's local implementation; use 1"
        )
    if problems:
        raise ValueError("; ".join(problems))


def load_weights(weights: Weights, architecture: Architecture) -> Load:
    """Copies Hugging Face tensors to where they belong; what fits was checked from headers."""
    table = NameTable(architecture)

    def load(models: list[Any]) -> None:
        for parameter in local_parameters(models):
            names, transform = table.find(parameter.global_name)
            tensors = [weights.read(name) for name in names]
            with torch.no_grad():
                parameter.tensor.copy_(transform.local(tensors, parameter.tensor_parallel))
        if architecture.expert_bias:
            for name, buffer in local_biases(models):
                buffer.copy_(weights.read(table.bias(name)))

    return load


def load_checkpoint(folder: Path) -> Load:
    """Megatron's own loader on a distributed checkpoint, resharding included.

    Args:
        folder: of one iteration, whatever it is called.
    """

    def load(models: list[Any]) -> None:
        from megatron.training import get_args
        from megatron.training.checkpointing import load_checkpoint

        args = get_args()
        with tempfile.TemporaryDirectory() as place:
            # What the caller has checked is what is loaded, and not what a tracker names.
            (Path(place) / RELEASE).symlink_to(folder.resolve())
            (Path(place) / TRACKER).write_text(RELEASE)
            # Weights alone: no optimizer, no iteration, no random state.
            args.load, args.ckpt_step, args.finetune = place, None, True
            args.exit_on_missing_checkpoint = True
            load_checkpoint(models, None, None)
        args.load = None

    return load
