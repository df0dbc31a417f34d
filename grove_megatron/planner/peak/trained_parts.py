"""Which linear layers of every decoder layer are trained: a frozen one keeps no input."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from ...model.architecture import Model
from ...model.subsets import are_trained
from ...model.table import OUTPUT, held

_MODULES = (
    "linear_qkv",
    "linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
    "mlp.experts.linear_fc1",
    "mlp.experts.linear_fc2",
    "mlp.adjugate_experts.linear_fc1",
    "mlp.adjugate_experts.linear_fc2",
    "mlp.shared_experts.linear_fc1",
    "mlp.shared_experts.linear_fc2",
)
ALL = frozenset((*_MODULES, "output_layer", "eh_proj"))
"""Names of all of them."""


class TrainedParts(NamedTuple):
    """Names of :data:`ALL`: of every decoder layer, of MTP layers. And is the output trained?"""

    layers: tuple[frozenset[str], ...]
    mtp: frozenset[str]
    output: bool


def trained_parts(model: Model, chosen: Sequence[str]) -> TrainedParts:
    """The linear layers that are trained, of any expert.

    Args:
        chosen: as :func:`.subsets.selected` has it; empty for all.
    """
    if not chosen:
        return TrainedParts((ALL,) * model.num_layers, ALL, True)
    return _trained_parts(model, tuple(chosen))


@cache
def _trained_parts(model: Model, chosen: tuple[str, ...]) -> TrainedParts:
    def of(layers: list[int], mtp: bool) -> frozenset[str]:
        weights = held(model, layers, embedding=False, norm=False, output=False, mtp=mtp)
        return frozenset(
            _module(weight.name)
            for weight, prefix in weights
            if weight.name.endswith(".weight") and any(are_trained(weight, prefix, model, chosen))
        )

    layers = tuple(of([layer], False) for layer in range(model.num_layers))
    output = any(are_trained(OUTPUT, "", model, chosen))
    return TrainedParts(layers, of([], True), output)


def _module(name: str) -> str:
    """``self_attention.linear_qkv.weight`` is of linear_qkv, as :data:`ALL` has it."""
    name = name.removesuffix(".weight").removeprefix("self_attention.")
    return name.replace("experts.experts.", "experts.")
