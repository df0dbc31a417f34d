"""Which Hugging Face tensors a parameter of a Megatron module is made of."""

import re

from ..model.architecture import Architecture
from ..model.families import named_weights
from .transforms import Transform, transform_of


class NameTable:
    """Look up a Megatron module parameter.

    Args:
        architecture: of the model.
    """

    def __init__(self, architecture: Architecture):
        weights = named_weights(architecture)
        self._rows = [
            (_pattern(weight.prefix + name), weight.hf, transform_of(weight, architecture))
            for weight in weights
            if not weight.buffer
            for name in weight.module_names
        ]
        self._buffers = [(_pattern(w.prefix + w.name), w.hf) for w in weights if w.buffer]

    def find(self, name: str) -> tuple[tuple[str, ...], Transform]:
        """Hugging Face names and transform of a parameter named with global numbers.

        Raises:
            KeyError: no weight, or more than one, has this name.
        """
        # A norm of a dense layer and of one with experts may have the same.
        found = dict.fromkeys(
            (tuple(one.format(**match.groupdict()) for one in hf), transform)
            for pattern, hf, transform in self._rows
            if (match := pattern.fullmatch(name))
        )
        if len(found) != 1:
            raise KeyError(f"{name} has {len(found)} rows in the name table; it needs 1")
        return next(iter(found))

    def bias(self, name: str) -> str:
        """The Hugging Face tensor of a buffer, which is named as a parameter is."""
        found = [
            one.format(**match.groupdict())
            for pattern, hf in self._buffers
            if (match := pattern.fullmatch(name))
            for one in hf
        ]
        (only,) = found
        return only


def _pattern(megatron: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(megatron)))
