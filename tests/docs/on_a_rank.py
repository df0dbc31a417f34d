"""Runs on a rank: a command or a program of a document, in its folder."""

import os
import sys


def grove(folder: str, argv: list[str]) -> None:
    """``grove`` with ``argv``."""
    from grove_megatron.cli import main

    os.chdir(folder)
    os.environ["COLUMNS"] = "100"
    sys.argv = ["grove", *argv]
    main()


def program(folder: str, text: str) -> None:
    """A Python program, as ``python program.py``."""
    os.chdir(folder)
    # What transformers copies of an exported folder's code.
    os.environ["HF_MODULES_CACHE"] = os.path.join(folder, "modules")
    exec(compile(text, "program.py", "exec"), {"__name__": "__main__"})
