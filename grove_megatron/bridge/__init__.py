"""Megatron-Bridge learns GroveMoE: :func:`register`, or ``import grove_megatron.bridge.plugin``.

Importing this package needs nothing of Megatron-Bridge and changes nothing; see the README beside
this file.
"""

from .installed import problems


def register() -> None:
    """Register GroveMoE with the installed Megatron-Bridge; again does nothing.

    Raises:
        ImportError: a package is missing, or has a version this was not written for; each with
            what to install.
    """
    found = problems()
    if found:
        raise ImportError("\n".join(["grove_megatron.bridge cannot be registered:", *found]))
    # The import registers, and Python imports a module once.
    from . import registration  # noqa: F401
