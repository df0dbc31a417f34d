"""Does the model have a place for every weight of the checkpoint it will load?

Megatron refuses a checkpoint that lacks a weight of the model, and says nothing of one that has
more: without ``--qk-layernorm`` a model that was trained with it goes on as another model.
"""

from argparse import Namespace
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.utils import get_model_config, unwrap_model
from megatron.training import get_args

from ..checkpoint import manifest
from ..checkpoint.megatron_weights import is_of_training
from ..checkpoint.torch_dist import TorchDistReader
from ..config import has_grove_layers
from .checkpoint_folder import checkpoints_to_load, read_at_start
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
    if args.load is None and args.pretrained_checkpoint is None:
        return models
    # Read once, and not by thousands of ranks.
    read: list[Any] = [None]
    if dist.get_rank() == 0:
        read = [_saved(args, has_grove_layers(get_model_config(models[0])))]
    dist.broadcast_object_list(read, src=0)
    if read[0] is None:
        return models
    folder, saved = read[0]
    wanted = _keys(models)
    dropped = sorted(key for key in saved if key not in wanted and _other_name(key) not in wanted)
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


def _saved(args: Namespace, grove: bool) -> tuple[str, list[str]] | None:
    """The checkpoint that is loaded and its weights; None: none, or one that is not looked at."""
    folders = [f for name in read_at_start(args) for f in checkpoints_to_load(args, name)]
    # Megatron's own model and its own checkpoint: as Megatron does it.
    if not folders or not (grove or (folders[-1] / manifest.NAME).is_file()):
        return None
    try:
        saved = TorchDistReader(folders[-1]).tensors
    except ValueError:
        return None  # a format that Megatron knows to refuse
    return str(folders[-1]), [key for key in saved if not is_of_training(key)]


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
