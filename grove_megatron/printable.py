"""Text of somebody else's file on a terminal."""

from collections.abc import Sequence


def printable(text: str) -> str:
    """``text`` without what a terminal would act upon; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def counted(problems: Sequence[object]) -> str:
    """``2 problems``"""
    return f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"


def numbered(problems: Sequence[object]) -> str:
    """A line for each, as a terminal may have it."""
    return printable("\n".join(f"  {n}. {line}" for n, line in enumerate(problems, 1)))
