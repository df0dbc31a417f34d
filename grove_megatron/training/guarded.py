"""A check that fails is a problem too, and no traceback: it met a value nobody thought of."""

import traceback
from collections.abc import Callable, Iterable
from typing import Any

FAILED = "the command line cannot be checked"


def lines_of(check: Callable[..., Iterable[str]], *given: Any) -> list[str]:
    """What ``check`` says of what it is given, or that it cannot."""
    found = []
    try:
        for line in check(*given):
            found.append(line)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{'/'.join(place.filename.split('/')[-3:])}:{place.lineno}"
        said = " ".join(f"{type(error).__name__}: {error}".split())
        found.append(f"{FAILED}: {said} ({where}); correct the flag that this is of")
    return found
