"""Parameters of a model: all of them, and those that a token uses.

Buffers, such as the router's expert bias, are no parameters.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from .architecture import Model
from .selection import ffn_per_token
from .table import held
from .weights import Weight


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of parameters by whose they are: the three that differ in copies and in use."""

    dense: int = 0
    experts: int = 0
    adjugates: int = 0

    @property
    def total(self) -> int:
        return self.dense + self.experts + self.adjugates

    def active(
        self, experts_met: float, num_experts: int, groups_met: float, num_groups: int
    ) -> float:
        """Those that a token uses: all but the experts and adjugates it does not meet.

        Embedding and output count whole, as in the model cards of mixture-of-experts models.

        Args:
            experts_met, groups_met: how many it meets in a layer, which has ``num_experts`` and
                ``num_groups``; unused without.
        """
        active = float(self.dense)
        if num_experts:
            active += self.experts * experts_met / num_experts
        if num_groups:
            active += self.adjugates * groups_met / num_groups
        return active


def count(weights: Iterable[tuple[Weight, int]]) -> Counts:
    """Sum numbers of elements by the weights' kind."""
    sums = dict.fromkeys((None, "E", "G"), 0)
    for weight, numel in weights:
        if not weight.buffer:
            sums[weight.stack] += numel
    return Counts(dense=sums[None], experts=sums["E"], adjugates=sums["G"])


def total_parameters(model: Model) -> Counts:
    """Of the whole model, every weight once."""
    sizes = model.sizes
    return count((weight, weight.numel(sizes)) for weight, _ in whole_model(model))


def whole_model(model: Model) -> list[tuple[Weight, str]]:
    """Every weight, a kind as often as the model has it, and what goes before its name."""
    layers, untied = range(model.num_layers), not model.tied_embeddings
    return held(model, layers, embedding=True, norm=True, output=untied, mtp=True)


def active_parameters(
    model: Model, groups_per_token: float, experts_per_token: float | None = None
) -> float:
    """Parameters that a token uses.

    Args:
        groups_per_token: adjugates it uses in a layer: a bound, an expectation, or a measurement.
        experts_per_token: experts with an FFN, likewise; None for the expectation.
    """
    met = ffn_per_token(model) if experts_per_token is None else experts_per_token
    counts = total_parameters(model)
    return counts.active(met, model.num_experts, groups_per_token, model.num_groups)
