"""``python -m grove_megatron.parts [--write]``: print the page, or write it."""

import sys

from .page import PAGE, page

if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
