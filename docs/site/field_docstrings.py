"""The docstring of a field is prose: napoleon takes what stands before a colon in it for a type."""

from typing import Any

from sphinx.application import Sphinx

_FIELDS = ("attribute", "data", "property")


def setup(app: Sphinx) -> dict[str, bool]:
    written: dict[str, list[str]] = {}

    def keep(_app: Sphinx, what: str, name: str, _of: Any, _options: Any, lines: list[str]) -> None:
        if what in _FIELDS:
            written[name] = [*lines]

    def restore(
        _app: Sphinx, what: str, name: str, _of: Any, _options: Any, lines: list[str]
    ) -> None:
        if what in _FIELDS:
            lines[:] = written.pop(name)

    # Before napoleon and after it, which is at 500.
    app.connect("autodoc-process-docstring", keep, priority=499)
    app.connect("autodoc-process-docstring", restore, priority=501)
    return {"parallel_read_safe": True}
