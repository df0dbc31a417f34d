"""``python -m grove_megatron.parts [--write]``: print the page, or write it and the cards."""

import sys

from .page import PAGE, page

if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
        from ..cards.small import is_checkout
        from ..cards.write import write

        if is_checkout():
            write()
        else:
            print("no cards: there is no repository around the package", file=sys.stderr)
    else:
        print(page(), end="")
