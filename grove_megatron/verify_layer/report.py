"""How far a layer is from the authors' numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint.errors import LOSS_TOLERANCE, size_of, worst_of
from .golden import INPUT, Golden
from .measure import Measured, measure
from .one_layer import configuration

TOLERANCES = {"fp32": 1e-5, "fp64": 1e-10}
"""Of output and gradients, by dtype."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The worst errors, relative to the largest entry of each tensor, or to the loss.

    Attributes:
        max_output_error: of y.
        max_grad_error: of any gradient, those that are zero in the folder included.
        grads_compared: how many of the folder's gradients.
        grads_in_file: all it has.
        max_loss_error: None if no loss was compared.
        routing_equal: did every token get the experts that it got there?
        grads_missed: names of gradients that the layer has none of.
        dtype: that was computed in.
    """

    max_output_error: float
    max_grad_error: float
    grads_compared: int
    grads_in_file: int
    max_loss_error: float | None
    routing_equal: bool
    grads_missed: tuple[str, ...]
    dtype: str

    @property
    def passed(self) -> bool:
        # Written so that NaN fails.
        return (
            self.max_output_error <= TOLERANCES[self.dtype]
            and self.max_grad_error <= TOLERANCES[self.dtype]
            and (self.max_loss_error is None or self.max_loss_error <= LOSS_TOLERANCE)
            and self.routing_equal
            and self.grads_compared == self.grads_in_file
        )


def verify_layer(golden: Golden, dtype: str = "fp32", extra_flags: Sequence[str] = ()) -> Report:
    """Build, run, compare; every rank of the job calls this and gets the same report.

    Args:
        golden: of a folder.
        dtype: fp32 or fp64, of weights, tokens and router.
        extra_flags: Megatron flags, such as --expert-model-parallel-size.

    Raises:
        ValueError: flags that do not go with the system.
    """
    config = configuration(golden, dtype, extra_flags)
    measured: dict[str | None, Measured] = {None: measure(golden, config, dtype)}
    for name, loss in golden.system.losses.items():
        if name in golden.losses:
            measured[name] = measure(golden, config, dtype, loss)
    return compare(golden, measured, dtype)


def compare(golden: Golden, measured: dict[str | None, Measured], dtype: str) -> Report:
    """What was measured, of sum(y * r) and of every loss alone, against the folder."""
    main = measured[None]
    missed, compared, worst = [], 0, 0.0
    for loss, found in measured.items():
        theirs = golden.grads[loss]
        missed += [_full_name(loss, name) for name in theirs.keys() - found.grads.keys()]
        compared += len(theirs.keys() & found.grads.keys())
        worst = max([worst, *_errors(theirs, found.grads)])
    losses = [
        _loss_error(found.loss, golden.losses[loss])
        for loss, found in measured.items()
        if loss is not None and found.loss is not None
    ]
    system = golden.system
    return Report(
        max_output_error=_error(main.y, golden.y, float(golden.y.abs().max())),
        max_grad_error=worst,
        grads_compared=compared,
        grads_in_file=sum(len(grads) for grads in golden.grads.values()),
        max_loss_error=max(losses, default=None),
        routing_equal=bool(torch.equal(main.routing_map, system.routing(golden.extras))),
        grads_missed=tuple(sorted(missed)),
        dtype=dtype,
    )


def _full_name(loss: str | None, name: str) -> str:
    kind = "grad" if loss is None else f"grad_{loss}"
    return f"{kind}.{name}" if name == INPUT else f"{kind}.w.{name}"


def _errors(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> Iterator[float]:
    """Relative to the largest entry of each gradient."""
    overall = max(float(grad.abs().max()) for grad in theirs.values()) if theirs else 1.0
    for name, found in ours.items():
        expected = theirs.get(name, torch.zeros_like(found)).double()
        yield _error(found, expected, size_of(expected, overall))


def _loss_error(found: float, expected: float) -> float:
    return _error(*torch.tensor([found, expected], dtype=torch.float64), abs(expected) or 1.0)


def _error(found: Tensor, expected: Tensor, size: float) -> float:
    return worst_of((found.double() - expected.double()).abs() / size)
