"""``python -m grove_megatron.reference [--write | --check]``: the pages of flags and commands.

``--check`` says which of them is not as ``--write`` would make it, and exits 1 if any.
"""

import sys
from pathlib import Path

from . import commands, flags

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


def pages() -> dict[str, str]:
    """Every file by name, as it is to be."""
    return {"flags.md": flags.page(), "commands.md": commands.page()}


def stale(folder: Path = FOLDER) -> list[str]:
    """A line for each page that is not."""
    again = "run python -m grove_megatron.reference --write"
    return [
        f"docs/reference/{name}: out of date; {again}"
        for name, text in pages().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


def main(words: list[str]) -> int:
    """The exit code."""
    if words == ["--write"]:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name, text in pages().items():
            (FOLDER / name).write_text(text, encoding="utf-8")
        return 0
    if words == ["--check"]:
        for line in (lines := stale()):
            print(line, file=sys.stderr)
        return 1 if lines else 0
    print("\n".join(pages().values()), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
