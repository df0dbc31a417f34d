"""Which entry of which golden tensor is which entry of which parameter of the layer.

A system says once how parameters are made of its tensors, by slicing, stacking and transposing.
Carried out on the numbers of the entries instead of on the entries, that gives a table which is
read in both directions: weights go in by it, and gradients come out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Take(Protocol):
    """Hands out a tensor of the folder: by its name and the shape that it must have."""

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A tensor to slice, stack and transpose; every one is asked for once."""


Parameters = Callable[[Take], dict[str, Tensor]]


@dataclass(frozen=True)
class Layout:
    """Both directions.

    Attributes:
        shapes: of the golden tensors, in the order of their entries in a flat vector.
        entries: for every parameter of the layer the places of its entries in that vector.
    """

    shapes: dict[str, Shape]
    entries: dict[str, Tensor]

    @classmethod
    def of(cls, parameters: Parameters) -> Self:
        """Read the table off the function that makes the parameters of the tensors."""
        shapes: dict[str, Shape] = {}
        total = 0

        def take(name: str, *shape: int) -> Tensor:
            nonlocal total
            assert name not in shapes, f"{name} is asked for twice"
            shapes[name] = shape
            start, total = total, total + torch.Size(shape).numel()
            return torch.arange(start, total).reshape(shape)

        entries = parameters(take)
        used = torch.cat([places.flatten() for places in entries.values()])
        assert torch.equal(used.sort().values, torch.arange(total)), "an entry is not used once"
        return cls(shapes, entries)

    @property
    def size(self) -> int:
        """Entries of all golden tensors."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    def flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Golden tensors, by name, as one vector."""
        return torch.cat([tensors[name].flatten() for name in self.shapes])

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """And back."""
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        pieces = zip(self.shapes.items(), torch.split(flat, sizes), strict=True)
        return {name: piece.reshape(shape) for (name, shape), piece in pieces}
