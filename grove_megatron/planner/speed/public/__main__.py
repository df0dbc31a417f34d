"""``python -m grove_megatron.planner.speed.public --write | --check``: plans against measurements.

``--write`` makes README.md of this folder; ``--check`` says whether it is as the code makes it, and
exits 1 if not.
"""

import sys

from .table import PAGE, text

if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(text(), encoding="utf-8")
    elif sys.argv[1:] == ["--check"]:
        if PAGE.read_text(encoding="utf-8") != text():
            print(f"{PAGE} is not as the code makes it; --write", file=sys.stderr)
            sys.exit(1)
    else:
        print(__doc__, end="")
        sys.exit(2)
