"""Keys of a ``config.json``, each read or refused, and refusals that say everything at once."""

import math
from dataclasses import dataclass, field
from typing import Any, NoReturn

_LONGEST = 80


def brief(value: object) -> str:
    """A value of a config in a message: one line, and no longer than that."""
    text = " ".join(str(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def refuse_all(where: str, problems: list[str]) -> NoReturn:
    """Raise one ValueError that says where, and then all problems, a line each."""
    raise ValueError("\n".join([f"{where}:", *(f"  {problem}" for problem in problems)]))


@dataclass
class Keys:
    """Reads keys of a config and collects what is wrong with them.

    A reader returns 0 or False for a key it has a problem with; no key may have that value and be
    right, except where zero is said to be.
    """

    config: dict[str, Any]
    problems: list[str] = field(default_factory=list)

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number above 0; ``default`` where the key is absent or null."""
        value = self._value(key, default)
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.problems.append(
                f"{key} ({brief(value)}) is not a whole number above 0; correct it"
            )
            return 0
        return value

    def number(self, key: str, default: float | None = None, *, or_zero: bool = False) -> float:
        """A finite number above 0, ``or_zero``; int or float as it stands."""
        value = self._value(key, default)
        if value is None:
            return 0
        fits = is_number(value) and (value > 0 or (or_zero and value == 0))
        if not fits:
            least = "of 0 or more" if or_zero else "above 0"
            self.problems.append(
                f"{key} ({brief(value)}) is not a finite number {least}; correct it"
            )
            return 0
        return value  # type: ignore[no-any-return]

    def flag(self, key: str, default: bool) -> bool:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problems.append(f"{key} ({brief(value)}) is not true or false; correct it")
            return False
        return value

    def only(self, key: str, *handled: Any) -> None:
        """Refuse other values; an absent key has a handled one."""
        value = self.config.get(key, handled[0])
        # 0 == False, but it is not the same in a config.
        if not any(value == one and type(value) is type(one) for one in handled):
            self.problems.append(
                f"{key} ({brief(value)}) is not {handled[0]}, the one value handled; use a model "
                "with it"
            )

    def _value(self, key: str, default: float | None) -> Any:
        value = self.config.get(key)
        if value is None:
            value = default
        if value is None:
            shown = "null" if key in self.config else "absent"
            self.problems.append(f"{key} ({shown}) is needed; add it")
        return value


def is_number(value: Any) -> bool:
    """A finite int or float that is no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
