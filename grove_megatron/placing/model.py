"""What a placement is asked for, and of what model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .counts import Evidence


@dataclass(frozen=True)
class Asked:
    """Of a record or trace.

    Attributes:
        ranks: expert-parallel.
        since: the iteration after which intervals count.
        run: of a record; None: the one that began last.
        experts, groups: that the model has; None: as it says itself.
        moved: is the order in use given (``--current``)?
    """

    ranks: int
    since: int = 0
    run: str | None = None
    experts: int | None = None
    groups: int | None = None
    moved: bool = False


@dataclass(frozen=True)
class Source:
    """Layers to place.

    Attributes:
        said: what was read.
        layers: names.
        experts, groups: of each.
        evidence: of a layer, by name; read when it is asked for, a Refusal if that cannot be.
        files: that were read.
        estimated: do sums stand for the tokens, whose rows are estimated?
        doubts: what makes the estimate worse than it says, one line each.
    """

    said: str
    layers: tuple[str, ...]
    experts: int
    groups: int
    evidence: Callable[[str], Evidence]
    files: tuple[Path, ...]
    estimated: bool = False
    doubts: tuple[str, ...] = ()

    @property
    def units(self) -> int:
        """What moves as a whole: groups, or experts where there are none."""
        return self.groups or self.experts
