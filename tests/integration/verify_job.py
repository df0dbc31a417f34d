"""Runs on a rank: the ``grove`` command, its stdout in a file of its own."""

import os
import sys


def grove(folder: str, argv: list[str]) -> None:
    """``grove`` with ``argv``; what it prints on stdout goes to ``rank<n>.stdout``."""
    from grove_megatron.cli import main

    path = os.path.join(folder, f"rank{os.environ['RANK']}.stdout")
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    sys.argv = ["grove", *argv]
    main()
