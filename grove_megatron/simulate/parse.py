"""A routing's name on the command line: what it is, and everything that is wrong with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..checks.problem import Problem, Refusal
from .limited import limit_problems, limited
from .routing import (
    Drawn,
    correlated,
    exponent_problems,
    planted,
    share_problems,
    uniform,
    zipf,
)
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
            Refusal: its numbers are none of such a routing of these sizes.
        """
        return _DRAWN[self.kind].make(sizes, seed, *self.numbers)


def every(texts: Sequence[str]) -> list[str]:
    """The texts of ``--routing``, with the names of all workloads for ``workloads``."""
    return [name for text in texts for name in (WORKLOADS if text == ALL else [text])]


def parse(text: str) -> Named:
    """Read ``--routing``.

    Raises:
        Refusal: no such routing, or not as many numbers as it takes, or none of any layer's.
    """
    kind, *rest = text.split(":", 1 if text.startswith((f"{RECORD}:", f"{TRACE}:")) else -1)
    if kind in (RECORD, TRACE):
        if not rest or not rest[0]:
            raise _refusal(text, f"names no file; give it as {kind}:PATH")
        return Named(text, kind, place=Path(rest[0]))
    if kind not in _DRAWN:
        known = ", ".join((*_DRAWN, ALL, f"{RECORD}:DIR", f"{TRACE}:FILE"))
        raise _refusal(text, f"is not one of ({known}); choose one")
    of = _DRAWN[kind]
    try:
        numbers = tuple(map(float, rest))
    except ValueError:
        numbers = (0.0,) * (of.most + 1)
    if not of.least <= len(numbers) <= of.most:
        raise _refusal(text, f"is not as ({of.spelled}); give its numbers so")
    if problems := of.problems(*numbers):
        raise Refusal(problems)
    return Named(text, kind, numbers)


def _refusal(text: str, problem: str) -> Refusal:
    return Refusal([Problem("--routing", text, problem)])


def _slices(
    make: Callable[[Sizes, int, float, int | None], Drawn],
) -> Callable[..., Drawn]:
    def of(sizes: Sizes, seed: int, share: float, units: float | None = None) -> Drawn:
        return make(sizes, seed, share, None if units is None else int(units))

    return of


def _slice_problems(share: float, units: float | None = None) -> list[Problem]:
    problems = share_problems(share)
    if units is not None and not units.is_integer():
        text = "is no whole number; use slices that divide the groups"
        problems.append(Problem("--routing units", f"{units:g}", text))
    return problems


@dataclass(frozen=True)
class _Kind:
    """A routing that is drawn.

    Args:
        make: of sizes, a seed and its numbers.
        spelled: how its name and numbers are given.
        least, most: numbers.
        problems: of the numbers, whatever the sizes are.
    """

    make: Callable[..., Drawn]
    spelled: str
    least: int = 0
    most: int = 0
    problems: Callable[..., list[Problem]] = list


_DRAWN = {
    "uniform": _Kind(uniform, "uniform"),
    "zipf": _Kind(zipf, "zipf:EXPONENT", 1, 1, exponent_problems),
    **{
        name: _Kind(_slices(make), f"{name}:SHARE or {name}:SHARE:GROUPS", 1, 2, _slice_problems)
        for name, make in {"correlated": correlated, "planted": planted}.items()
    },
    "limited": _Kind(limited, "limited:GROUPS:TOPK", 2, 2, limit_problems),
    **{name: _Kind(partial(workload, name), name) for name in WORKLOADS},
}
