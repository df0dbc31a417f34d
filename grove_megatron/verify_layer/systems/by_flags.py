"""A layer in this package's own names: what a part of the router is verified by.

config.json gives what other systems' files know: ``flags``, of experts and router; ``weights``, the
shape of every parameter, experts counted as ``experts.<e>.linear_fc1.weight``; ``losses``, by name
an object of ``metric``, ``coefficient`` and ``fields``; and as ``draws``, where the router draws,
which numbers the layer file has in place of them: ``uniform`` [T] or ``normal`` [T, E].
"""

import shlex
from typing import Any

from torch import Tensor

from ..layout import Take
from ..settings import Settings
from ..system import ROUTING, Loss, System

NAMES = ("grove_megatron",)


def system(settings: Settings) -> System:
    draws = settings.choice("draws", "uniform", "normal") if "draws" in settings.values else None
    shapes = _typed(settings, "weights", dict)
    flags = _typed(settings, "flags", str)
    losses = _typed(settings, "losses", dict) if "losses" in settings.values else {}
    if "--num-experts" not in flags.split():
        settings.problems.append(f"flags ({flags}) of config.json are without --num-experts")
        flags = "--num-experts 1"

    def parameters(take: Take) -> dict[str, Tensor]:
        return {name: take(name, *shape) for name, shape in shapes.items()}

    return System(
        flags=shlex.split(flags),
        parameters=parameters,
        losses={name: Loss(**loss) for name, loss in losses.items()},
        draws=draws,
        extras=ROUTING | ({draws} if draws else set()),
    )


def _typed(settings: Settings, key: str, kind: type) -> Any:
    if isinstance(value := settings.values.get(key), kind):
        return value
    settings.problems.append(f"{key} ({value}) of config.json is no {kind.__name__}")
    return kind()
