"""Bytes on every rank: weights, gradients, optimizer, activations.

Weights to optimizer are exact but for the padding of Megatron's buffers: with bf16, 2 bytes of
weight, 4 of gradient, and 12 of optimizer (its fp32 copy and Adam's two moments) a parameter, the
12 divided over the data-parallel ranks by the distributed optimizer. A frozen weight is 2 bytes:
Megatron gives gradients and an optimizer to what requires a gradient alone
(distributed_data_parallel.py:115, optimizer/__init__.py:330 @ 0.19.2).
"""

from dataclasses import dataclass, field

from ..model.parameters import Counts
from .activations import stage_activation_parts
from .inputs import Sizes
from .parameters import rank_parameters, rank_trained

MARGIN = 0.10
"""Share to leave on top, for what is not counted: padding, the allocator's fragments, workspaces
and communication buffers. The CUDA context and imbalanced routing come on top of that."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on a rank.

    Attributes:
        activation_parts: whose the activations are, at the moment when they are most; their sum.
            Names are those of ``planner/peak/steps.py``.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    activation_parts: dict[str, float] = field(default_factory=dict)

    @property
    def state(self) -> dict[str, float]:
        """What the total is the sum of, by name."""
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
        }

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def with_margin(self) -> float:
        return self.total * (1 + MARGIN)


def stage_memory(sizes: Sizes) -> tuple[Memory, ...]:
    """On a rank of every pipeline stage."""
    precision, layout = sizes.training.precision, sizes.layout
    counts = rank_parameters(sizes.model, layout)
    trained_counts = rank_trained(sizes.model, layout, sizes.training.train_only)
    stages = zip(counts, trained_counts, stage_activation_parts(sizes), strict=True)
    return tuple(
        Memory(
            weights=count.total * precision.weight,
            gradients=trained.total * precision.gradient,
            optimizer=_optimizer(sizes, trained),
            activations=sum(parts.values()),
            activation_parts=parts,
        )
        for count, trained, parts in stages
    )


def largest(memories: tuple[Memory, ...]) -> int:
    """The stage that needs most."""
    return max(range(len(memories)), key=lambda stage: memories[stage].total)


def _optimizer(sizes: Sizes, trained: Counts) -> float:
    layout, training = sizes.layout, sizes.training
    each = training.precision.main_weight + training.precision.moments
    if not training.distributed_optimizer:
        return trained.total * each
    instances = training.optimizer_instances
    dense = trained.dense / (layout.dense_copies / instances)
    experts = (trained.experts + trained.adjugates) / (layout.expert_copies / instances)
    return (dense + experts) * each
