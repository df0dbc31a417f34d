"""A model's weights one by one: which Hugging Face tensors are which part of which entry."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..model.architecture import Architecture
from ..model.families import named_weights
from ..model.table import of_layer
from ..model.weights import Place, Weight
from .transforms import Shape, Transform, transform_of


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
        also: a second key with the same content, see :class:`.weights.Weight`.
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
    kinds = named_weights(architecture)
    yield from _at("embedding", kinds, architecture)
    for layer, is_moe in enumerate(architecture.moe_layers):
        here = of_layer(kinds, is_moe)
        # What is in it once, then expert by expert, then group by group.
        for stack in (None, "E", "G"):
            for index in range(architecture.sizes[stack] if stack else 1):
                for weight in here:
                    if weight.stack == stack:
                        yield _unit(weight, architecture, layer, layers_stacked, index)
    yield from _at("norm", kinds, architecture)
    if not architecture.tied_embeddings:
        yield from _at("output", kinds, architecture)


def _at(place: Place, kinds: list[Weight], architecture: Architecture) -> Iterator[Unit]:
    return (_unit(weight, architecture) for weight in kinds if weight.place == place)


def _unit(
    weight: Weight,
    architecture: Architecture,
    layer: int | None = None,
    layers_stacked: bool = False,
    index: int = 0,
) -> Unit:
    place: tuple[int, ...] = ()
    stacked: tuple[int, ...] = ()
    prefix = weight.prefix
    if layers_stacked:
        assert layer is not None
        place, stacked = (layer,), (architecture.num_layers,)
        prefix = prefix.replace("{layer}.", "")
    prefix = prefix.format(layer=layer)
    sizes = architecture.sizes
    if weight.stack:
        place, stacked = (*place, index), (*stacked, weight.count(sizes))
    return Unit(
        key=prefix + weight.name,
        place=place,
        stacked=stacked,
        shape=weight.shape(sizes),
        names=tuple(name.format(layer=layer, index=index) for name in weight.hf),
        shapes=weight.hf_shapes(sizes),
        transform=transform_of(weight, architecture),
        also=weight.also and prefix + weight.also,
    )


def hf_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Every Hugging Face tensor of the model, by name."""
    return {
        name: shape
        for unit in units(architecture)
        for name, shape in zip(unit.names, unit.shapes, strict=True)
    }
