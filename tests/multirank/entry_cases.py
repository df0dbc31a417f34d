"""On the ranks: what a model built by the launcher would save."""

import sys
from typing import Any

import torch

from tests.ranks import write_result

# Not of the model.
TRAINING = (
    "--micro-batch-size 1 --global-batch-size 4 --seq-length 8 --train-iters 1 --lr 0 "
    "--eval-interval 1 "
    "--tokenizer-type NullTokenizer --mock-data --no-create-attention-mask-in-dataloader"
).split()


def saved(folder: str, flags: list[str]) -> None:
    """Job: [key, global shape, offset, shape] of every tensor, and the keys of all objects."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import (
        ShardedObject,
        ShardedTensor,
        apply_factories,
    )
    from megatron.core.utils import unwrap_model
    from megatron.training.checkpointing import generate_state_dict

    from grove_megatron.runtime import cpu

    with cpu():
        args, models = _build(flags)
        state = generate_state_dict(args, unwrap_model(models), None, None, None, {})
        pieces: list[Any] = []
        for name in (n for n in state if n.startswith("model")):
            entries = state[name]
            apply_factories(entries)
            pieces += list(nested_values(entries))
        tensors, objects = [], []
        for piece in pieces:
            if isinstance(piece, ShardedTensor):
                offset = [*piece.global_offset]
                tensors.append([piece.key, list(piece.global_shape), offset, _shape(piece)])
            elif isinstance(piece, ShardedObject):
                objects.append(piece.unique_key)
        modules = [type(m).__name__ for model in unwrap_model(models) for m in model.modules()]
    write_result(folder, {"tensors": tensors, "objects": objects, "modules": sorted(set(modules))})


def _shape(piece: Any) -> list[int]:
    """Of the chunk, with the axes that it is a slice of."""
    return [1] * piece.prepend_axis_num + list(piece.local_shape)


def _build(flags: list[str]) -> tuple[Any, list[Any]]:
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import (
        core_transformer_config_from_args,
        gpt_config_from_args,
    )
    from megatron.training.initialize import initialize_megatron

    from grove_megatron.config import GroveTransformerConfig
    from grove_megatron.training.builder import GroveGPTModelConfig
    from grove_megatron.training.launch import parse_arguments

    sys.argv = ["pretrain", *TRAINING, *flags]
    args = parse_arguments()
    initialize_megatron()
    torch.manual_seed(0)
    model_config = gpt_config_from_args(
        args,
        config=core_transformer_config_from_args(args, GroveTransformerConfig),
        model_config_cls=GroveGPTModelConfig,
    )
    models: list[Any] = model_config.get_builder_cls()(model_config).build_distributed_models(
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
        ddp_config=DistributedDataParallelConfig(),
        data_parallel_random_init=False,
    )
    return args, models
