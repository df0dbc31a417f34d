"""``python -m grove_megatron.messages [--write | --check]``: all messages, and the pages of them.

``--write`` collects them from the source and writes what ``grove explain`` reads and
``docs/troubleshooting``; ``--check`` says what is not as it would write it, which notes are of no
message, and what Megatron and torch do not say, and exits 1 if there is any of it.
"""

import sys

from .collect import collected, is_kept, kept
from .entries import KEPT, foreign
from .installed import unsaid
from .page import FOLDER, pages, stale, unused_notes

_AGAIN = "run python -m grove_megatron.messages --write"


def check() -> list[str]:
    """What is wrong, a line each."""
    found = collected()
    lines = [] if is_kept(found) else [f"{KEPT.name}: a message is new, changed or gone; {_AGAIN}"]
    lines += [f"{line}; {_AGAIN}" for line in stale(found)]
    return [*lines, *unused_notes(found), *unsaid(foreign())]


def write() -> None:
    """The kept messages and the pages, and no others."""
    found = collected()
    KEPT.write_text(kept(found), encoding="utf-8")
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = pages(found)
    for path in FOLDER.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def main(words: list[str]) -> int:
    """The exit code."""
    if words == ["--write"]:
        write()
        return 0
    if words == ["--check"]:
        for line in (lines := check()):
            print(line, file=sys.stderr)
        return 1 if lines else 0
    for module, texts in collected().items():
        print("\n".join(f"{module}: {text}" for text in texts))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
