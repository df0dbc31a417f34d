"""Text of somebody else's file on a terminal."""


def printable(text: str) -> str:
    """``text`` without what a terminal would act upon; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
