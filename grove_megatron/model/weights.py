"""One kind of weight of a model: its name, its shape, and how ranks divide it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Literal

DECODER_LAYER = "decoder.layers.{layer}."
MTP_LAYER = "mtp.layers.{layer}."

_PREFIXES = dict.fromkeys(("layer", "dense", "moe"), DECODER_LAYER) | {"mtp": MTP_LAYER}

Sizes = Mapping[str, int]
Place = Literal["embedding", "layer", "dense", "moe", "norm", "output", "mtp"]


class Split(StrEnum):
    """What tensor-parallel ranks divide of a weight, those of experts for experts."""

    WHOLE = "nothing: every rank has all of it"
    ROWS = "its rows"
    COLUMNS = "its columns"
    GATED = "the rows of each of its two blocks, gate and up"
    QKV = "its rows, which are query group by query group its queries, its key, its value"


@dataclass(frozen=True)
class Weight:
    """One kind of weight, or of buffer.

    Args:
        name: of its entry in a Megatron checkpoint, in a layer without ``prefix``.
        blocks: the dimensions of the blocks of rows that it is made of, often one, as letters of
            :attr:`.architecture.Model.sizes`: ``("EH",)`` is one of [experts, hidden size].
        split: how tensor-parallel ranks divide it.
        hf: the Hugging Face tensors of these blocks, in a layer without what goes before; empty for
            the names of the model's family (:mod:`.families`).
        hf_blocks: the dimensions of these tensors where they are cut in other places; one after
            the other they have the entries that the blocks have.
        place: what has one: every decoder ``layer``, one without experts (``dense``) or with
            (``moe``), an ``mtp`` layer, or the model at its beginning (``embedding``) and its end
            (``norm``, ``output``).
        stack: the letter of what a layer has several of, ``E`` experts or ``G`` groups, which are
            an axis of the entry and which expert-parallel ranks divide.
        modules: names of the module's parameter where they differ, ``{index}`` in place of the
            number of an expert or group.
        also: a second name under which some implementation looks for the same entry.
        buffer: no parameter, so no gradient belongs to it.
    """

    name: str
    blocks: tuple[str, ...]
    split: Split = Split.WHOLE
    hf: tuple[str, ...] = ()
    hf_blocks: tuple[str, ...] = ()
    place: Place = "moe"
    stack: Literal["E", "G"] | None = None
    modules: tuple[str, ...] = ()
    also: str | None = None
    buffer: bool = False

    @property
    def prefix(self) -> str:
        """What goes before the name in a layer, ``{layer}`` in place of the layer's number."""
        return _PREFIXES.get(self.place, "")

    @property
    def module_names(self) -> tuple[str, ...]:
        """All names of the module's parameter; that of a stacked entry is in no module."""
        return self.modules if self.stack else (self.name, *self.modules)

    def shapes(self, sizes: Sizes) -> tuple[tuple[int, ...], ...]:
        """Of every block."""
        return tuple(tuple(sizes[letter] for letter in block) for block in self.blocks)

    def hf_shapes(self, sizes: Sizes) -> tuple[tuple[int, ...], ...]:
        """Of every Hugging Face tensor."""
        blocks = self.hf_blocks or self.blocks
        return tuple(tuple(sizes[letter] for letter in block) for block in blocks)

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Of all of them together, of one expert or group."""
        shapes = self.shapes(sizes)
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def count(self, sizes: Sizes) -> int:
        """Experts or groups in it, 1 where it is not stacked."""
        return sizes[self.stack] if self.stack else 1

    def numel(self, sizes: Sizes) -> int:
        """Elements, of all experts or groups."""
        return self.count(sizes) * prod(self.shape(sizes))

    def width(self, sizes: Sizes) -> int:
        """Rows or columns that tensor-parallel ranks divide into equal parts."""
        if self.split is Split.GATED:
            return self.shapes(sizes)[0][0]
        return self.shape(sizes)[1 if self.split is Split.COLUMNS else 0]
