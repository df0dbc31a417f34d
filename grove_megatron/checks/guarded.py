"""A check that fails is a problem too, and no traceback: it met a value nobody thought of."""

import traceback
from collections.abc import Callable, Iterable
from typing import Any

from .problem import Problem

FAILED = "the command line cannot be checked"


def problems_of[T](check: Callable[..., Iterable[T]], *given: Any) -> list[T | Problem]:
    """What ``check`` finds in what it is given, or that it cannot."""
    found: list[T | Problem] = []
    try:
        for one in check(*given):
            found.append(one)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{'/'.join(place.filename.split('/')[-3:])}:{place.lineno}"
        said = " ".join(f"{type(error).__name__}: {error}".split())
        text = f"{FAILED}: {said} ({where}); correct the flag that this is of"
        found.append(Problem.of_text(text))
    return found


def lines_of(check: Callable[..., Iterable[str]], *given: Any) -> list[str]:
    """The same of a check that says notices, a line each."""
    return [*map(str, problems_of(check, *given))]
