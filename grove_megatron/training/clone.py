"""What a patched entry script of a Megatron-LM clone calls, to go on under ``grove_megatron.run``.

``grove_megatron.run`` brings flags, checks, configuration class, builder, runtime and failure watch
to a script from outside and needs no change to it. Where the script itself has to be started, the
patches in ``patches/`` add one call of :func:`install` to it, which hands the script over.
"""

import sys


def install() -> None:
    """Run the script that calls this under ``grove_megatron.run``, and end the process with it.

    Call it once, as the first line under ``if __name__ == "__main__"``: what is above runs again
    there, and a script that is only imported changes nothing. Does nothing where the plugin is
    active already, as it is the second time, or for a patched script under ``grove_megatron.run``.

    Raises:
        SystemExit: when the script has ended, with its exit code.
        PatchError: the clone's Megatron is not what the patches of the runtime were written for.
    """
    entry = sys.modules.get(f"{__package__}.entry")
    if entry is not None and entry.ENTRY.active:
        return
    from ..run import main

    sys.argv.insert(0, "grove_megatron.run")
    main()
    raise SystemExit(0)
