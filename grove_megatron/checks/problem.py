"""One problem of a command line, a configuration or a file, as everybody who asks gets it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Self

UNSAID: Final = object()
"""The value of a problem whose text says it, or that has none."""


@dataclass(frozen=True)
class Problem:
    """``flag (value) text``, where the text goes on with the relation and ends with the fix.

    Args:
        flag: what is wrong, as it was spelled: ``--moe-router-topk``, a file, a field.
        value: of it; UNSAID: none is shown.
        text: ``is not between 1 and --num-experts (8); choose the experts per token``.
        about: the other flags that the text speaks of, which one change may mend as well.
        where: the rank that found it, where it is not the one that says it.
    """

    flag: str
    value: object
    text: str
    about: tuple[str, ...] = ()
    where: str = ""

    @classmethod
    def of_text(cls, text: str) -> Self:
        """What somebody else says in words of their own: Megatron, a library, a file's reader."""
        return cls("", UNSAID, text)

    def __str__(self) -> str:
        value = "" if self.value is UNSAID else f"({shown(self.value)})"
        named = " ".join(part for part in (self.flag, value) if part)
        line = f"{named} {self.text}" if named and self.text[0] not in ",:" else named + self.text
        return f"{self.where}: {line}" if self.where else line

    def packed(self) -> list[Any]:
        """As JSON, for another rank, with the value as it is shown."""
        value = None if self.value is UNSAID else shown(self.value)
        return [self.flag, value, self.text, self.about, self.where]

    @classmethod
    def unpacked(cls, packed: list[Any]) -> Self:
        """What :meth:`packed` made."""
        flag, value, text, about, where = packed
        return cls(flag, UNSAID if value is None else value, text, tuple(about), where)


class Refusal(ValueError):
    """Problems as an exception, whose message is all of them.

    Args:
        problems: one or more.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = [*problems]
        super().__init__("; ".join(map(str, self.problems)))


def of_other_flags(problems: Iterable[Problem], said: Iterable[Problem]) -> list[Problem]:
    """Those of flags of which nothing has been said."""
    flags = {one.flag for one in said if one.flag}
    return [one for one in problems if one.flag not in flags]


def shown(value: object) -> str:
    """A value as on a command line."""
    if isinstance(value, Enum):
        return value.name
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
