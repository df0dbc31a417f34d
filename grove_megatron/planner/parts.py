"""What the parts of a router add to a model, known without importing them.

A part is torch; its row of the table in :mod:`.flags` has what a plan needs of it.
"""

from collections.abc import Mapping
from typing import Any

from ..model.settings import has_grove_layers
from ..model.weights import Weight
from .flags import table
from .sizes import RouterParts


def grove_defaults() -> dict[str, Any]:
    """Names and defaults of all Grove settings."""
    found: dict[str, Any] = table()["defaults"][0]
    return found


def router_parts(args: Any) -> RouterParts:
    """Of a command line.

    Args:
        args: a namespace with the Grove flags.
    """
    return parts_of(vars(args)) if has_grove_layers(args) else RouterParts()


def parts_of(settings: Mapping[str, Any]) -> RouterParts:
    """Of the settings of a layer; what is not among them has its default."""
    active = [row for row in table()["parts"] if _is_on(row, settings)]
    return RouterParts(
        local_experts=sum(settings[row["setting"]] for row in active if row.get("columns")),
        weights=tuple(
            Weight(
                f"mlp.router.{row['slot']}_{row['name']}.{name}", ("".join(dims),), buffer=buffer
            )
            for row in active
            for kind, buffer in (("weights", False), ("buffers", True))
            for name, dims in row[kind].items()
        ),
    )


def _is_on(row: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    value = settings.get(row["setting"])
    return bool(value) if row["value"] is True else bool(value == row["value"])
