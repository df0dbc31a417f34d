"""``torchrun -m grove_megatron.run SCRIPT ...``: an unmodified Megatron entry script, with Grove.

The script sees the ``--grove-*`` flags, the same checks as ``grove_megatron.pretrain``, and, on a
machine without CUDA, the CPU runtime.
"""

import os
import runpy
import sys


def main() -> None:
    """Run ``sys.argv[1]`` as ``__main__`` with the rest of the command line."""
    from .compat import environment_problems
    from .training.refuse import refuse

    if len(sys.argv) < 2 or not os.path.isfile(sys.argv[1]):
        given = sys.argv[1] if len(sys.argv) > 1 else "nothing"
        refuse([f"script ({given}) is not a file; torchrun -m grove_megatron.run path/to/script.py ..."])
    del sys.argv[0]
    # As python does for a script: its neighbours, and a clone's own megatron, come first.
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    if problems := environment_problems():
        refuse(problems)
    from .runtime import selected

    with selected():
        from .training.entry import ENTRY

        with ENTRY.applied():
            runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    sys.exit(main())
