"""``python -m grove_megatron.presets [--write [GOLDEN ...] | --check]``: the cards of presets.

``--write`` runs ``grove verify`` for every golden, or for those named, and writes ``docs/presets``;
``--check`` says which pages are not what the kept results make, and exits 1 if any.
"""

import sys

from . import measured
from .cards import FOLDER, pages, stale
from .goldens import goldens


def main(words: list[str]) -> int:
    """The exit code."""
    if words[:1] == ["--write"]:
        known = {golden.name: golden for golden in goldens()}
        if unknown := [name for name in words[1:] if name not in known]:
            print(f"no golden {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
            return 2
        found = {name: row for name, row in measured.rows().items() if name in known}
        for name in words[1:] or known:
            found[name] = measured.measure(known[name])
            print(f"{name}: {'passed' if found[name]['passed'] else 'FAILED'}", flush=True)
            measured.write(found)
        made = pages()
        for page in FOLDER.glob("*.md"):
            if page.name not in made:
                page.unlink()
        for name, text in made.items():
            (FOLDER / name).write_text(text, encoding="utf-8")
        return 0
    if words == ["--check"]:
        for line in (lines := stale()):
            print(line, file=sys.stderr)
        return 1 if lines else 0
    print(pages()["README.md"], end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
