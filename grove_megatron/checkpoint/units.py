"""A model's weights one by one: which Hugging Face tensors are which part of which entry."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from .architecture import Architecture
from .hf_names import Row, rows, shape_of
from .transforms import Shape, Transform


@dataclass(frozen=True)
class Unit:
    """The smallest part that is converted by itself: one matrix or vector of Megatron's.

    Args:
        key: entry of the Megatron checkpoint.
        place: index of the part in the leading axes of the entry, ``stacked``.
        stacked: their sizes: layers where all are alike, then experts or groups.
        shape: of the part itself.
        names: the Hugging Face tensors it is made of.
        shapes: theirs.
        transform: how.
        also: a second key with the same content, see :class:`.hf_names.Row`.
    """

    key: str
    place: tuple[int, ...]
    stacked: tuple[int, ...]
    shape: Shape
    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    transform: Transform
    also: str | None = None

    @property
    def global_shape(self) -> Shape:
        return self.stacked + self.shape


def units(architecture: Architecture, layers_stacked: bool | None = None) -> Iterator[Unit]:
    """All of them, layer by layer; within a layer expert by expert, as files have them.

    Args:
        architecture: of the model.
        layers_stacked: whether the entries of a checkpoint have an axis of layers; by default as
            Megatron decides it, who stores layers one by one if they differ.
    """
    if layers_stacked is None:
        layers_stacked = architecture.layers_are_alike
    table = [row for row in rows(architecture) if row.saved]
    whole = [row for row in table if row.layers == "none"]
    embedding, rest = whole[:1], whole[1:]
    yield from (_unit(row, architecture) for row in embedding)
    for layer, is_moe in enumerate(architecture.moe_layers):
        here = [row for row in table if row.layers in ("all", "moe" if is_moe else "dense")]
        yield from _of_layer(here, architecture, layer, layers_stacked)
    yield from (_unit(row, architecture) for row in rest)


def _of_layer(
    table: list[Row], architecture: Architecture, layer: int, stacked: bool
) -> Iterator[Unit]:
    for row in table:
        if row.stack is None and not (row.buffer and not architecture.expert_bias):
            yield _unit(row, architecture, layer, stacked)
    for stack, count in _stacks(architecture):
        for index in range(count):
            for row in table:
                if row.stack == stack:
                    yield _unit(row, architecture, layer, stacked, index)


def _stacks(architecture: Architecture) -> tuple[tuple[str, int], ...]:
    return ("expert", architecture.num_experts), ("group", architecture.num_groups)


def _unit(
    row: Row,
    architecture: Architecture,
    layer: int | None = None,
    layers_stacked: bool = False,
    index: int | None = None,
) -> Unit:
    place: tuple[int, ...] = ()
    stacked: tuple[int, ...] = ()
    key, also = row.key, row.also
    if layers_stacked:
        assert layer is not None
        place, stacked = (layer,), (architecture.num_layers,)
        key = key.replace("{layer}.", "")
        also = also and also.replace("{layer}.", "")
    elif layer is not None:
        key = key.format(layer=layer)
        also = also and also.format(layer=layer)
    if row.stack is not None:
        assert index is not None
        place, stacked = (*place, index), (*stacked, dict(_stacks(architecture))[row.stack])
    shapes = tuple(shape_of(tensor, architecture) for tensor in row.hf)
    numbers = {"layer": layer, "expert": index, "group": index}
    return Unit(
        key=key,
        place=place,
        stacked=stacked,
        shape=row.transform.shape(shapes),
        names=tuple(tensor.name.format(**numbers) for tensor in row.hf),
        shapes=shapes,
        transform=row.transform,
        # A Grove layer looks for the first key alone.
        also=None if architecture.is_grove else also,
    )


def hf_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Every Hugging Face tensor of the model, by name."""
    return {
        name: shape
        for unit in units(architecture)
        for name, shape in zip(unit.names, unit.shapes, strict=True)
    }


def count_parameters(architecture: Architecture) -> int:
    """Trained entries: without the expert bias, which is a buffer."""
    without = replace(architecture, expert_bias=False)
    return sum(prod(shape) for shape in hf_shapes(without).values())
