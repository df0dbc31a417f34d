"""``python -m grove_megatron.planner --write | --check``: the table of flags that a plan reads.

``--write`` makes it of the installed Megatron; ``--check`` says whether it is so, and exits 1 if
not.
"""

import sys

from .flags import TABLE
from .known import text, write

if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write()
    elif sys.argv[1:] == ["--check"]:
        if TABLE.read_text(encoding="utf-8") != text():
            print(f"{TABLE.name} is not as the code makes it; --write", file=sys.stderr)
            sys.exit(1)
    else:
        print(__doc__, end="")
        sys.exit(2)
