"""Does the model have a place for every weight of the checkpoint it will load?

Megatron refuses a checkpoint that lacks a weight of the model, and says nothing of one that has
more: without ``--qk-layernorm`` a model that was trained with it goes on as another model.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.utils import get_model_config, unwrap_model
from megatron.training import get_args

from ..checkpoint import manifest
from ..checkpoint.layout import TRACKER
from ..checkpoint.megatron_weights import is_of_training, iteration_folder
from ..checkpoint.torch_dist import TorchDistReader
from ..config import is_grove
from .refuse import refuse

# What a user says who knows that weights stay behind.
_ON_PURPOSE = ("ignore_all", "log_all")


def check_no_weight_is_dropped(models: list[Any]) -> list[Any]:
    """Compare the entries of the checkpoint with those of the model; a hook of a model config.

    Args:
        models: this rank's model chunks; every rank must call.

    Returns:
        ``models``; if the checkpoint has weights that they do not, every rank exits 2.
    """
    args = get_args()
    if args.moe_use_upcycling:
        return models  # it loads them into another model, the dense one
    if args.ckpt_format != "torch_dist" or args.dist_ckpt_strictness in _ON_PURPOSE:
        return models
    folder = _to_load(args)
    if folder is None:
        return models
    try:
        saved = TorchDistReader(folder).tensors
    except ValueError:
        return models  # a format that Megatron knows to refuse
    if not (is_grove(get_model_config(models[0])) or (folder / manifest.NAME).is_file()):
        return models  # Megatron's own model and its own checkpoint: as Megatron does it
    wanted = _keys(models)
    dropped = sorted(
        key
        for key in saved
        if key not in wanted and _other_name(key) not in wanted and not is_of_training(key)
    )
    if dropped:
        more = f" and {len(dropped) - 1} more" if len(dropped) > 1 else ""
        refuse(
            [
                f"{folder} has weights ({dropped[0]}{more}) that the model of these flags does "
                "not; give the flags it was trained with, or --dist-ckpt-strictness ignore_all to "
                "go on without them"
            ]
        )
    return models


def _to_load(args: Namespace) -> Path | None:
    """As ``load_checkpoint`` chooses: the pretrained one as long as the run has none of its own."""
    load = args.load
    if args.pretrained_checkpoint and not (load and (Path(load) / TRACKER).is_file()):
        load = args.pretrained_checkpoint
    try:
        return iteration_folder(Path(load), args.ckpt_step) if load else None
    except ValueError:
        return None  # a run from the beginning


def _other_name(key: str) -> str:
    """An import writes the norm before experts as both implementations of Megatron call it."""
    return key.replace("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight")


def _keys(models: list[Any]) -> set[str]:
    """The checkpoint entries of the whole model, over all pipeline stages."""
    mine = {
        entry.key
        for model in unwrap_model(models)
        for entry in nested_values(model.sharded_state_dict())
        if hasattr(entry, "key")
    }
    everywhere: list[set[str]] = [set()] * dist.get_world_size()
    dist.all_gather_object(everywhere, mine)
    return set().union(*everywhere)
