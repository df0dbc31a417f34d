"""One released model: its settings, its parameters, and what is not built as it was released."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..checks.flags import flag_of

Value = int | float | str | list[int] | list[float] | list[str]
# Of a switch that is off: what turns it off where Megatron has it on.
_OFF = {"add_bias_linear": ["--disable-bias-linear"]}


@dataclass(frozen=True)
class Difference:
    """What the model of the flags has otherwise than the released one.

    Args:
        what: has the released one, and what has this one in its place.
        parameters: that this one has more by it; negative: fewer.
    """

    what: str
    parameters: int = 0


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A released model.

    Attributes:
        name: a choice of ``--grove-preset``.
        settings: what the model is, by the names of Megatron's arguments. Nothing of the job.
        source: paper, and the file the sizes are from.
        released: parameters of the released model.
        active: those that a token uses of it, embedding and output counted whole; None where that
            is no one number (groups) or not of one decoder.
        differs: what is not built as it was released.
    """

    name: str
    settings: Mapping[str, Value] = field(repr=False)
    source: str
    released: int
    active: int | None = None
    differs: tuple[Difference, ...] = ()

    @property
    def built(self) -> int:
        """Parameters of the model of the flags."""
        return self.released + sum(one.parameters for one in self.differs)

    def flags(self) -> list[str]:
        """The settings as words of a command line."""
        return [word for name, value in self.settings.items() for word in _words(name, value)]


def spelled(name: str, value: object) -> str:
    """A value of a setting as on a command line, where a pattern of layers is one word."""
    if not isinstance(value, list):
        return str(value)
    parts = map(str, value)
    return f"[{','.join(parts)}]" if name == "moe_layer_freq" else " ".join(parts)


def _words(name: str, value: Value) -> list[str]:
    if value is False:
        return _OFF.get(name, [])
    words = [flag_of(name)]
    return words if value is True else [*words, *spelled(name, value).split()]
