"""Read whole checkpoints in the test process, whatever layout wrote them."""

from pathlib import Path
from typing import Any

import torch


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a torch_dist checkpoint, put together again, by its key."""
    from megatron.core import dist_checkpointing  # noqa: F401 (its classes are in the metadata)
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    found: dict[str, Any] = {}
    _load_state_dict(
        found,
        storage_reader=FileSystemReader(str(folder)),
        planner=_EmptyStateDictLoadPlanner(),
        no_dist=True,
    )
    return {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}


def differences(a: Path, b: Path) -> list[str]:
    """Keys of tensors that only one of two checkpoints has, or that are not the same bits."""
    left, right = tensors(a), tensors(b)
    return sorted(
        key
        for key in left.keys() | right.keys()
        if key not in left or key not in right or not torch.equal(left[key], right[key])
    )
