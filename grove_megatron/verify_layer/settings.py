"""The hyperparameters of a folder, and all that is wrong with them at once."""

from collections.abc import Mapping
from typing import Any


class Settings:
    """``config.json`` as a system reads it.

    What is missing or wrong is noted in ``problems`` and read as the smallest value there is, so
    that reading goes on to the next problem.

    Args:
        values: of config.json.
        variant: of the layer, "default" for ``layer.safetensors``.
    """

    def __init__(self, values: Mapping[str, Any], variant: str = "default") -> None:
        self.values, self.variant = values, variant
        self.problems: list[str] = []

    def size(self, key: str) -> int:
        """An integer of 1 or more."""
        value = self.values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
        self.problems.append(f"{key} ({value}) of config.json is not an integer of 1 or more")
        return 1

    def count(self, key: str, default: int) -> int:
        """An integer of 0 or more, ``default`` where it is absent."""
        value = self.values.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        self.problems.append(f"{key} ({value}) of config.json is not an integer of 0 or more")
        return default

    def number(self, key: str) -> float:
        """A number above 0."""
        value = self.values.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
        self.problems.append(f"{key} ({value}) of config.json is not a number above 0")
        return 1.0

    def choice(self, key: str, *choices: Any) -> Any:
        """One of the values that the system is known with."""
        value = self.values.get(key)
        if value in choices:
            return value
        shown = ", ".join(map(str, choices))
        self.problems.append(f"{key} ({value}) of config.json is not one of ({shown})")
        return choices[0]

    @property
    def of_variant(self) -> "Settings":
        """The hyperparameters that only the variant has; its problems are this one's."""
        return self.inside("variants").inside(self.variant)

    def inside(self, key: str) -> "Settings":
        """An object of config.json; its problems are this one's."""
        own = self.values.get(key)
        if not isinstance(own, dict):
            self.problems.append(f"{key} ({own}) of config.json is not an object")
            own = {}
        found = Settings(own, self.variant)
        found.problems = self.problems
        return found

    @property
    def batch(self) -> int:
        """Sequences; rows are b * S + s."""
        return self.size("batch") if "batch" in self.values else 1

    @property
    def sequence(self) -> int:
        """Tokens of a sequence."""
        return self.size("seq") if "batch" in self.values else self.size("num_tokens")
