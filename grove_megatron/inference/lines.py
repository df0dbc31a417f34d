"""What a command is asked, a line of a file each."""

from collections.abc import Callable
from pathlib import Path


def read_lines[T](
    flag: str, file: Path, parse: Callable[[str], T | None], *, what: str, wanted: str
) -> list[T]:
    """All lines that are not empty.

    Args:
        flag: that named the file.
        parse: a line; None where it is wrong.
        what: a line is.
        wanted: of each.

    Raises:
        ValueError: it cannot be read or has none, or which lines are wrong.
    """
    try:
        # Not splitlines, for which a form feed is one more end.
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{flag} ({file}) cannot be read: {error}") from error
    found, wrong = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        value = parse(line)
        if value is None:
            wrong.append(str(number))
        else:
            found.append(value)
    if wrong:
        raise ValueError(
            f"{flag} ({file}) has lines without {wanted} ({', '.join(wrong[:10])}); correct them"
        )
    if not found:
        raise ValueError(f"{flag} ({file}) has no {what}; write some")
    return found
