"""In one process: the models that the ranks of a job would build, and what the planner says.

The process takes one rank after the other of a world whose collectives do nothing (torch's
``fake`` backend), and builds on torch's ``meta`` device: parameters have shapes and no memory.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from tests.integration.flags import DATA
from tests.ranks import write_result

SIZE = (
    "--num-layers 4 --hidden-size 32 --num-attention-heads 4 --seq-length 32 "
    "--max-position-embeddings 32 --micro-batch-size 1 --train-iters 1 --lr 1e-2 --swiglu "
    "--normalization RMSNorm --position-embedding-type rope "
    "--attention-dropout 0 --hidden-dropout 0 --num-experts 8 --moe-router-topk 2 "
    "--moe-ffn-hidden-size 24 --transformer-impl local --moe-token-dispatcher-type alltoall "
    # No other rank is there to compare its flags.
    "--fake-process-group"
).split()


def built_and_planned(folder: str, cases: dict[str, list[Any]]) -> None:
    """Job: by name, of every rank: parameters of its model by part and by name, and those planned.

    Args:
        cases: name -> [world size, ranks to look at, flags].
    """
    from grove_megatron.runtime import cpu

    with cpu():
        result = {name: _case(*case) for name, case in cases.items()}
    write_result(folder, result)


def refused_when_built(folder: str, cases: dict[str, list[Any]]) -> None:
    """Job: by name, what Megatron asserts when it builds a model, None if it does.

    Args:
        cases: as above.
    """
    from grove_megatron.planner.rules import latent_rules, rank_rules, validity
    from grove_megatron.runtime import cpu

    result: dict[str, str | None] = dict.fromkeys(cases)
    # Ours come first.
    ours = (rank_rules.widths, latent_rules.latent_problems)
    others = tuple(rule for rule in validity.RULES if rule.check not in ours)
    with cpu(), patch.object(validity, "RULES", others):
        for name, case in cases.items():
            try:
                _case(*case)
            except AssertionError as error:
                result[name] = str(error)
    write_result(folder, result)


def _case(world: int, ranks: int, flags: list[str]) -> list[dict[str, Any]]:
    from megatron.training.global_vars import unset_global_variables

    from grove_megatron.training.launch import parse_arguments
    from grove_megatron.training.sizes import sizes_of

    os.environ["WORLD_SIZE"] = str(world)
    sys.argv = ["pretrain", *SIZE, *DATA, "--global-batch-size", str(world * 4), *flags]
    try:
        args = parse_arguments()
        sizes = sizes_of(args)
        return [_one_rank(rank, args, sizes) for rank in range(ranks)]
    finally:
        unset_global_variables()
        os.environ["WORLD_SIZE"] = "1"


def _one_rank(rank: int, args: Any, sizes: Any) -> dict[str, Any]:
    from megatron.core import mpu

    from grove_megatron.checkpoint.local_names import global_name
    from grove_megatron.model.subsets import SUBSETS, selected
    from grove_megatron.planner.parameters import (
        rank_parameters,
        rank_trained,
        share,
        stage_weights,
    )
    from grove_megatron.planner.pipeline import stages
    from grove_megatron.training.subsets import with_both

    with _groups(rank, args), _OnMeta():
        built = dict.fromkeys(("dense", "experts", "adjugates"), 0)
        built_by_name: Counter[str] = Counter()
        trained = dict.fromkeys((*SUBSETS, r"layers\.1\.", r"^output_layer\."), 0)
        for model in _models(args):
            for name, parameter in model.named_parameters():
                built[_part(name)] += parameter.numel()
                built_by_name[_kind(name)] += parameter.numel()
                for one in trained:
                    chosen = with_both([one]) if sizes.model.tied_embeddings else [one]
                    if selected(global_name(model, name), chosen):
                        trained[one] += parameter.numel()
        stage = mpu.get_pipeline_model_parallel_rank()
    planned = rank_parameters(sizes.model, sizes.layout)[stage]
    planned_by_name: Counter[str] = Counter()
    for weight, _ in stage_weights(sizes.model, stages(sizes.model, sizes.layout)[stage]):
        if not weight.buffer:
            # The local implementation has norms as modules of their own.
            name = weight.name if weight.stack else weight.module_names[-1]
            planned_by_name[name] += share(weight, sizes.model, sizes.layout)
    return {
        "built": built,
        "planned": vars(planned),
        "built by name": built_by_name,
        "planned by name": planned_by_name,
        "trained": trained,
        "planned to be trained": {
            one: rank_trained(sizes.model, sizes.layout, [one])[stage].total for one in trained
        },
    }


def _part(name: str) -> str:
    if ".adjugate_experts." in name:
        return "adjugates"
    return "experts" if ".experts." in name else "dense"


def _kind(name: str) -> str:
    """A parameter's name without numbers of layers and experts, as a checkpoint's entry."""
    name = re.sub(r"^(decoder|mtp)\.layers\.\d+\.(mtp_model_layer\.)?", "", name)
    stacked = r"^(mlp\.(?:adjugate_)?experts)\.(?:local_experts\.\d+\.)?(linear_fc\d\.\w+?)\d*$"
    return re.sub(stacked, r"\1.experts.\2", name)


@contextmanager
def _groups(rank: int, args: Any) -> Iterator[None]:
    from megatron.core import mpu
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=args.world_size)
    mpu.initialize_model_parallel(
        args.tensor_model_parallel_size,
        args.pipeline_model_parallel_size,
        args.virtual_pipeline_model_parallel_size,
        expert_model_parallel_size=args.expert_model_parallel_size,
        expert_tensor_parallel_size=args.expert_tensor_parallel_size,
        create_gloo_process_groups=False,
    )
    model_parallel_cuda_manual_seed(1)
    try:
        yield
    finally:
        mpu.destroy_model_parallel()
        dist.destroy_process_group()


class _OnMeta(TorchFunctionMode):
    """Megatron makes every weight with ``torch.empty`` and then fills it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs = kwargs | {"device": "meta"}
        return func(*args, **kwargs)


def _models(args: Any) -> list[torch.nn.Module]:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import gpt_config_from_args

    from grove_megatron.training.builder import GroveGPTModelBuilder, GroveGPTModelConfig
    from grove_megatron.training.transformer_config import transformer_config

    config = gpt_config_from_args(
        args,
        config=transformer_config(args),
        model_config_cls=GroveGPTModelConfig,
    )
    groups = ProcessGroupCollection.use_mpu_process_groups()
    builder = GroveGPTModelBuilder(config)
    chunks = args.virtual_pipeline_model_parallel_size
    return [
        builder.build_model(groups, vp_stage=chunk if chunks else None)
        for chunk in range(chunks or 1)
    ]
