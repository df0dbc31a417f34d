"""A folder with one layer of a system: hyperparameters, inputs, weights, and what they give."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checkpoint.weights import ConversionError
from .layout import Layout, Shape
from .settings import Settings
from .system import System
from .systems import find_system, known_systems

DEFAULT = "default"
INPUT = "x"
_WEIGHT = "w."
_GRAD = "grad"
_LOSS = "loss."


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One layer file, all of it known to its system. T = B * S rows b * S + s, of H.

    Attributes:
        system: what its tensors are.
        settings: config.json.
        layout: where the entries of ``weights`` are in the layer.
        x, r, y: input, a fixed cotangent, and output, [T, H] each.
        weights: by name, without ``w.``.
        extras: the other tensors, by name.
        losses: values by name.
        grads: by the loss alone, or None for sum(y * r), then by name: those of ``weights``, and
            "x". What is absent is zero.
    """

    system: System
    settings: Settings
    layout: Layout
    x: Tensor
    r: Tensor
    y: Tensor
    weights: dict[str, Tensor]
    extras: dict[str, Tensor]
    losses: dict[str, float]
    grads: dict[str | None, dict[str, Tensor]]

    @classmethod
    def read(cls, folder: Path, variant: str = DEFAULT) -> Self:
        """The layer of ``folder``.

        Args:
            folder: with config.json and ``layer.safetensors``.
            variant: another one reads ``layer.<variant>.safetensors``.

        Raises:
            ConversionError: all that is missing, unknown or wrong.
        """
        settings = Settings(_read_config(folder), variant)
        describe = _system_of(folder, settings)
        system = describe(settings)
        tensors = system.prepare(_read_tensors(folder, variant))
        hidden = settings.size("hidden_size")
        rows = (settings.batch * settings.sequence, system.layers * hidden)
        problems = [*dict.fromkeys(settings.problems)]
        if problems:
            raise ConversionError([f"--layer ({folder}): {line}" for line in problems])
        layout = Layout.of(system.parameters)
        file = _File(tensors, system, layout, rows)
        if problems := file.problems() or file.routing_problems():
            raise ConversionError([f"--layer ({folder}): {line}" for line in problems])
        return cls(
            system=system,
            settings=settings,
            layout=layout,
            weights=file.part(_WEIGHT),
            extras={name: tensors[name] for name in file.extras},
            losses={name: float(value) for name, value in file.part(_LOSS).items()},
            grads={None: file.grads_of(None)} | {loss: file.grads_of(loss) for loss in file.losses},
            **{name: tensors[name] for name in ("x", "r", "y")},
        )


class _File:
    """The tensors of a layer file, sorted by what they are."""

    def __init__(
        self, tensors: dict[str, Tensor], system: System, layout: Layout, rows: Shape
    ) -> None:
        self.tensors, self.system = tensors, system
        columns = system.columns or _experts(system)
        self.routed: Shape = (rows[0], system.layers * columns)
        self.losses = [*system.losses]
        weights = {f"{_WEIGHT}{name}": shape for name, shape in layout.shapes.items()}
        self.needed: dict[str, Shape] = {"x": rows, "r": rows, "y": rows} | weights
        buffers = {*system.buffers.values()} - system.needs_extras
        self.needed |= dict.fromkeys(buffers, self.routed[1:])
        if system.draws is not None:
            self.needed[system.draws] = self.routed[: 1 if system.draws == "uniform" else 2]
        self.optional: dict[str, Shape] = {f"{_LOSS}{loss}": (1,) for loss in self.losses}
        for kind in (_GRAD, *(f"{_GRAD}_{loss}" for loss in self.losses)):
            self.optional |= {
                f"{kind}.{name}": shape for name, shape in (weights | {"x": rows}).items()
            }
        self.extras = sorted(system.extras & tensors.keys())

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    def grads_of(self, loss: str | None) -> dict[str, Tensor]:
        found = self.part(f"{_GRAD}." if loss is None else f"{_GRAD}_{loss}.")
        return {name.removeprefix(_WEIGHT): grad for name, grad in sorted(found.items())}

    def problems(self) -> list[str]:
        names, system = self.tensors.keys(), self.system
        missing = (self.needed.keys() | system.needs_extras) - names
        missing |= {f"{_GRAD}.{INPUT}"} - names
        missing |= {f"{_LOSS}{loss}" for loss in self.losses if self.grads_of(loss)} - names
        lines = [f"{name} is missing" for name in sorted(missing)]
        known = self.needed | self.optional
        unknown = names - known.keys() - system.extras
        lines += [f"{name} is not known" for name in sorted(unknown)]
        for name in sorted(known.keys() & names):
            tensor = self.tensors[name]
            if tuple(tensor.shape) != known[name]:
                shown = list(tensor.shape)
                lines.append(f"{name} has shape {shown}, not {list(known[name])}")
            elif not tensor.is_floating_point():
                lines.append(f"{name} has dtype {tensor.dtype}, which is no floating point")
            elif not bool(tensor.isfinite().all()):
                lines.append(f"{name} is not finite")
        return lines or system.check(self.tensors)

    def routing_problems(self) -> list[str]:
        try:
            found = tuple(self.system.routing(self.tensors).shape)
        except (RuntimeError, TypeError) as error:
            return [f"the routing of the tokens cannot be read: {error}"]
        if found == self.routed:
            return []
        return [f"the routing of the tokens has shape {list(found)}, not {list(self.routed)}"]


def _experts(system: System) -> int:
    return int(system.flags[system.flags.index("--num-experts") + 1])


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(
            [f"--layer ({folder}): config.json cannot be read: {error}"]
        ) from None
    if not isinstance(values, dict):
        raise ConversionError([f"--layer ({folder}): config.json holds no object"])
    return values


def _system_of(folder: Path, settings: Settings) -> Callable[[Settings], System]:
    called = settings.values.get("system")
    if found := find_system(called, folder):
        return found
    raise ConversionError(
        [
            f'--layer ({folder}): "system" of config.json ({called}) is not known; there are '
            f"{', '.join(known_systems())}"
        ]
    )


def _read_tensors(folder: Path, variant: str) -> dict[str, Tensor]:
    file = folder / ("layer.safetensors" if variant == DEFAULT else f"layer.{variant}.safetensors")
    if not file.is_file():
        there = ", ".join(sorted(path.name for path in folder.glob("layer*.safetensors")))
        raise ConversionError(
            [f"--variant ({variant}) has no {file.name} in {folder}; there are: {there or 'none'}"]
        )
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConversionError([f"{file} is not a safetensors file: {error}"]) from error
