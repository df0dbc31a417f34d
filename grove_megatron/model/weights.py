"""One kind of weight of a model: its name, its shape, and how ranks divide it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Literal


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
        name: of its entry in a Megatron checkpoint; that of a layer's weight goes on behind the
            layer's.
        blocks: the dimensions of the blocks of rows that it is made of, often one, as letters of
            :attr:`.architecture.Model.sizes`: ``("EH",)`` is one of [experts, hidden size].
        split: how tensor-parallel ranks divide it.
        hf: the Hugging Face tensors of these blocks, that of a layer behind the layer's name; empty
            for the names of the model's family (:mod:`.families`).
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
    stack: Literal["E", "G"] | None = None
    modules: tuple[str, ...] = ()
    also: str | None = None
    buffer: bool = False

    @property
    def module_names(self) -> tuple[str, ...]:
        """All names of the module's parameter; that of a stacked entry is in no module."""
        return self.modules if self.stack else (self.name, *self.modules)

    def shapes(self, sizes: Mapping[str, int]) -> tuple[tuple[int, ...], ...]:
        """Of every block."""
        return tuple(tuple(sizes[letter] for letter in block) for block in self.blocks)

    def count(self, sizes: Mapping[str, int]) -> int:
        """Experts or groups in it, 1 where it is not stacked."""
        return sizes[self.stack] if self.stack else 1

    def width(self, sizes: Mapping[str, int]) -> int:
        """Rows or columns that tensor-parallel ranks divide into equal parts, 1 for none."""
        shapes = self.shapes(sizes)
        match self.split:
            case Split.WHOLE:
                return 1
            case Split.COLUMNS:
                return shapes[0][1]
            case Split.GATED:
                return shapes[0][0]
            case Split.ROWS | Split.QKV:
                return sum(shape[0] for shape in shapes)

    def numel(self, sizes: Mapping[str, int]) -> int:
        """Elements, of all experts or groups."""
        return self.count(sizes) * sum(prod(shape) for shape in self.shapes(sizes))
