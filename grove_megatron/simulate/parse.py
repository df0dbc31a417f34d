"""A routing's name on the command line: what it is, and everything that is wrong with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checks.problem import Problem, Refusal
from .routing import Drawn, correlated, planted, uniform, zipf
from .sizes import Sizes
from .workloads import WORKLOADS, workload

RECORD, TRACE, ALL = "record", "trace", "workloads"


@dataclass(frozen=True)
class Named:
    """``--routing`` taken apart.

    Args:
        text: as it was given.
        kind: before the first colon.
        numbers: after it; empty for ``record`` and ``trace``.
        place: of a record, or the file of a trace.
    """

    text: str
    kind: str
    numbers: tuple[float, ...] = ()
    place: Path | None = None

    def draw(self, sizes: Sizes, seed: int) -> Drawn:
        """The routing, where it is drawn from sizes alone.

        Raises:
            Refusal: its numbers are none of such a routing.
        """
        if self.kind in WORKLOADS:
            return workload(self.kind, sizes, seed)
        make, _, _ = _DRAWN[self.kind]
        return make(sizes, seed, *self.numbers)


def every(texts: Sequence[str]) -> list[str]:
    """The texts of ``--routing``, with the names of all workloads for ``workloads``."""
    return [name for text in texts for name in (WORKLOADS if text == ALL else [text])]


def parse(text: str) -> Named:
    """Read ``--routing``.

    Raises:
        Refusal: no such routing, or not as many numbers as it takes.
    """
    kind, *rest = text.split(":", 1 if text.startswith((f"{RECORD}:", f"{TRACE}:")) else -1)
    if kind in (RECORD, TRACE):
        if not rest or not rest[0]:
            raise _refusal(text, f"names no file; give it as {kind}:PATH")
        return Named(text, kind, place=Path(rest[0]))
    if kind not in _DRAWN and kind not in WORKLOADS:
        known = ", ".join((*_DRAWN, *WORKLOADS, ALL, f"{RECORD}:DIR", f"{TRACE}:FILE"))
        raise _refusal(text, f"is not one of ({known}); choose one")
    _, least, most = _DRAWN.get(kind, (None, 0, 0))
    try:
        numbers = tuple(map(float, rest))
    except ValueError:
        numbers = (0.0,) * (most + 1)
    if not least <= len(numbers) <= most:
        raise _refusal(text, f"is not as ({_SPELLED.get(kind, kind)}); give its numbers so")
    return Named(text, kind, numbers)


def _refusal(text: str, problem: str) -> Refusal:
    return Refusal([Problem("--routing", text, problem)])


def _slices(
    make: Callable[[Sizes, int, float, int | None], Drawn],
) -> Callable[..., Drawn]:
    def of(sizes: Sizes, seed: int, share: float, units: float | None = None) -> Drawn:
        if units is not None and not units.is_integer():
            text = "is no whole number; use slices that divide the groups"
            raise Refusal([Problem("--routing units", f"{units:g}", text)])
        return make(sizes, seed, share, None if units is None else int(units))

    return of


# What makes it, and the fewest and most numbers behind its name.
_DRAWN: dict[str, tuple[Callable[..., Drawn], int, int]] = {
    "uniform": (uniform, 0, 0),
    "zipf": (zipf, 1, 1),
    "correlated": (_slices(correlated), 1, 2),
    "planted": (_slices(planted), 1, 2),
}
_SPELLED = {
    "zipf": "zipf:EXPONENT",
    "correlated": "correlated:SHARE or correlated:SHARE:GROUPS",
    "planted": "planted:SHARE or planted:SHARE:GROUPS",
}
