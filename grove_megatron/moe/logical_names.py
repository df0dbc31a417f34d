"""Checkpoints know experts by their numbers in the model, whichever rank holds them.

Megatron's expert modules, and ours, name those of a rank as the slice of that number. Where a
placement has put others there, the entries get their numbers here. So a checkpoint says nothing
of a placement, and loads with another, with none, and at another number of ranks.
"""

from dataclasses import replace
from typing import Any

from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensorFactory

SINGLETON = "singleton_local_shards"
"""In the metadata of a checkpoint: an expert's number is in its key, and not on an axis."""


def numbered(entries: dict[str, Any], prefix: str, order: tuple[int, ...], axis: int) -> None:
    """Give the entries of expert modules their numbers, in place.

    Args:
        entries: a sharded state dict.
        prefix: of those that are meant.
        order: the number in every place.
        axis: that has the places.
    """
    for name in [name for name in entries if name.startswith(prefix)]:
        entries[name] = _numbered(entries[name], order, axis)


def _numbered(entry: Any, order: tuple[int, ...], axis: int) -> Any:
    if isinstance(entry, ShardedTensorFactory):
        return replace(entry, build_fn=_Numbering(entry.build_fn, order, axis))
    offset = entry.global_offset
    assert len(entry.global_shape) > axis, entry
    assert entry.global_shape[axis] == len(order), entry
    assert isinstance(entry, ShardedObject) or entry.prepend_axis_num > axis, entry
    entry.global_offset = (*offset[:axis], order[offset[axis]], *offset[axis + 1 :])
    return entry


class _Numbering:
    """Builds what another builds, the optimizer's state of it too, with its numbers."""

    def __init__(self, build: Any, order: tuple[int, ...], axis: int) -> None:
        self._build, self._order, self._axis = build, order, axis

    def __call__(self, *of: Any) -> Any:
        built = self._build(*of)
        for piece in nested_values([built]):
            _numbered(piece, self._order, self._axis)
        return built
