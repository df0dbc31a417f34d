"""Settings of a layer beyond its sizes, as a model has them; asked without importing torch."""

from argparse import Namespace
from dataclasses import replace
from typing import Any

from ..model.architecture import Architecture
from ..planner.parts import grove_defaults, parts_of


def with_settings(architecture: Architecture, settings: dict[str, Any]) -> Architecture:
    """With these settings of its layers, and the weights that come with them."""
    of_layer = grove_defaults() | settings
    parts = parts_of(of_layer)
    return replace(
        architecture,
        settings=tuple(sorted(settings.items())),
        local_experts=parts.local_experts,
        constant_experts=of_layer["grove_constant_experts"],
        part_weights=parts.weights,
        whole_qk_norm=of_layer["grove_whole_qk_norm"],
    )


def settings_of_args(args: Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the arguments that are not the default."""
    defaults = grove_defaults()
    given = {name: getattr(args, name, defaults[name]) for name in names}
    return {name: value for name, value in given.items() if value != defaults[name]}
