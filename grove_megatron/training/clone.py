"""What a patched entry script of a Megatron-LM clone calls: the plugin for one whole process.

``grove_megatron.run`` brings flags, checks, configuration class, builder and runtime to a script
from outside and needs no change to it. Where the script itself has to be started, the patches in
``patches/`` add one call of :func:`install` to it, and the same things come in from inside.
"""

import atexit
import sys
from contextlib import ExitStack

from .start import started


def install() -> None:
    """Apply what ``grove_megatron.run`` applies, until the process ends.

    Call it once, before the script parses its command line, from under
    ``if __name__ == "__main__"``: a script that is only imported then changes nothing. Does
    nothing where the plugin is active already, as it is for a patched script under
    ``grove_megatron.run``. An installation that cannot work ends the process with exit code 2.

    Raises:
        PatchError: the clone's Megatron is not what the patches of the runtime were written for.
    """
    entry = sys.modules.get(f"{__package__}.entry")
    if entry is not None and entry.ENTRY.active:
        return
    with ExitStack() as stack:
        stack.enter_context(started())
        from .entry import ENTRY
        from .reporting import REPORTING

        stack.enter_context(ENTRY.applied())
        stack.enter_context(REPORTING.applied())
        # All are in force: keep them, and undo them in order before the interpreter shuts down.
        atexit.register(stack.pop_all().close)
