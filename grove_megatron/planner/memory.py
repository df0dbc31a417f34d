"""Bytes on every rank: weights, gradients, optimizer, activations.

Weights to optimizer are exact but for the padding of Megatron's buffers: with bf16, 2 bytes of
weight, 4 of gradient, and 12 of optimizer (its fp32 copy and Adam's two moments) a parameter, the
12 divided over the data-parallel ranks by the distributed optimizer.
"""

from dataclasses import dataclass

from ..model.parameters import Counts
from .activations import stage_activations
from .inputs import Sizes
from .parameters import rank_parameters

MARGIN = 0.10
"""Share to leave on top, for what is not counted: padding, the allocator's fragments, workspaces
and communication buffers. The CUDA context and imbalanced routing come on top of that."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on a rank."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def with_margin(self) -> float:
        return self.total * (1 + MARGIN)


def stage_memory(sizes: Sizes) -> tuple[Memory, ...]:
    """On a rank of every pipeline stage."""
    precision = sizes.training.precision
    counts = rank_parameters(sizes.model, sizes.layout)
    return tuple(
        Memory(
            weights=count.total * precision.weight,
            gradients=count.total * precision.gradient,
            optimizer=_optimizer(sizes, count),
            activations=activations,
        )
        for count, activations in zip(counts, stage_activations(sizes), strict=True)
    )


def largest(memories: tuple[Memory, ...]) -> int:
    """The stage that needs most."""
    return max(range(len(memories)), key=lambda stage: memories[stage].total)


def _optimizer(sizes: Sizes, count: Counts) -> float:
    layout, training = sizes.layout, sizes.training
    each = training.precision.main_weight + training.precision.moments
    if not training.distributed_optimizer:
        return count.total * each
    instances = training.optimizer_instances
    dense = count.dense / (layout.dense_copies / instances)
    experts = (count.experts + count.adjugates) / (layout.expert_copies / instances)
    return (dense + experts) * each
