"""Settings of a layer beyond its sizes, as a model has them."""

from argparse import Namespace
from dataclasses import replace
from typing import Any

from ..config import layer_defaults
from ..model.architecture import Architecture
from ..parts import registry


def with_settings(architecture: Architecture, settings: dict[str, Any]) -> Architecture:
    """With these settings of its layers, and the weights that come with them."""
    of_layer = Namespace(**layer_defaults() | settings)
    return replace(
        architecture,
        settings=tuple(sorted(settings.items())),
        local_experts=registry.local_experts(of_layer),
        constant_experts=of_layer.grove_constant_experts,
        part_weights=registry.weights(of_layer),
        whole_qk_norm=of_layer.grove_whole_qk_norm,
    )


def settings_of_args(args: Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the arguments that are not the default."""
    defaults = layer_defaults()
    given = {name: getattr(args, name, defaults[name]) for name in names}
    return {name: value for name, value in given.items() if value != defaults[name]}
