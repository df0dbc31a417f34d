"""``torchrun -m grove_megatron.run SCRIPT ...``: an unmodified Megatron entry script, with Grove.

It runs with the installed Megatron (a clone on PYTHONPATH goes before the wheel, as ever) and sees
the ``--grove-*`` flags, the same checks as ``grove_megatron.pretrain``, and, on a machine without
CUDA, the CPU runtime.
"""

import os
import runpy
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checks.problem import Problem


def main() -> None:
    """Run ``sys.argv[1]`` as ``__main__`` with the rest of the command line."""
    from .failure.watch import interruptible, watched
    from .training.one_job import writing_alone
    from .training.refuse import refuse
    from .training.start import alone, started

    if problems := script_problems(sys.argv[1:]):
        refuse(problems)
    del sys.argv[0]
    alone()
    with interruptible(), started(), watched(), writing_alone():
        from .training.entry import ENTRY
        from .training.reporting import REPORTING
        from .training.transformer_config import LATENT

        with ENTRY.applied(), LATENT.applied(), REPORTING.applied():
            _announce_megatron(sys.argv[0])
            # The script's neighbours come first, as python does it; Megatron is imported already.
            sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
            runpy.run_path(sys.argv[0], run_name="__main__")


def script_problems(words: list[str]) -> "list[Problem]":
    """That there is no script to run.

    Args:
        words: of the command line, the script first.
    """
    from .checks.problem import Problem

    if words and os.path.isfile(words[0]):
        return []
    usage = "torchrun -m grove_megatron.run path/to/script.py ..."
    return [Problem("script", words[0] if words else "nothing", f"is not a file; {usage}")]


def _announce_megatron(script: str) -> None:
    """Say so if the script sits in a clone whose own Megatron is not the one that runs."""
    import megatron.core

    used = os.path.dirname(os.path.abspath(megatron.core.__file__))
    beside = os.path.join(os.path.dirname(os.path.abspath(script)), "megatron", "core")
    if os.path.isdir(beside) and beside != used and os.environ.get("RANK", "0") == "0":
        print(
            f"grove_megatron: {script} runs with the Megatron in {used}; put its own folder on "
            "PYTHONPATH to use the one beside it",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
