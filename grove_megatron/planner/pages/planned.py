"""Planned layouts as a page shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...model.architecture import Model
from ..choice.layouts import Planned
from ..inputs import Sizes
from ..memory import Memory
from ..speed.cluster import Cluster
from .assumed import Assumed

_FIRST = 16
_BESIDE = 6


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that a page is of.

    Attributes:
        title: model and cluster in a few words.
        plans: the best first, those that do not fit last.
        cluster: that they are planned for.
        assumed: what the plan goes by beside the cluster.
        refused: layouts that cannot be, counted by reason.
    """

    title: str
    plans: Sequence[Planned]
    cluster: Cluster
    assumed: Sequence[Assumed] = ()
    refused: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.plans, "a comparison has a plan at least"

    @property
    def first(self) -> Planned:
        return self.plans[0]

    @property
    def model(self) -> Model:
        return self.first.sizes.model


@dataclass(frozen=True, kw_only=True)
class Place:
    """A layout among the others.

    Attributes:
        number: from 1, the best.
        plan: of the layout.
    """

    number: int
    plan: Planned

    @property
    def label(self) -> str:
        return f"{self.number}: {layout_label(self.plan.sizes)}"


def places(comparison: Comparison) -> list[Place]:
    """All layouts, in order."""
    return [Place(number=n, plan=plan) for n, plan in enumerate(comparison.plans, 1)]


def fitting(comparison: Comparison) -> list[Place]:
    """The best layouts that fit, not more than are legible."""
    return [place for place in places(comparison) if place.plan.fits][:_FIRST]


def too_large(comparison: Comparison) -> list[Place]:
    """Of the layouts that do not fit those that need least."""
    others = [place for place in places(comparison) if not place.plan.fits]
    return sorted(others, key=lambda place: place.plan.memory.total)[:_BESIDE]


def layout_label(sizes: Sizes) -> str:
    """``TP2 PP4 EP8 DP16 mb1``: parallel sizes, those of 1 not, and the micro-batch."""
    layout, training = sizes.layout, sizes.training
    parallel = {
        "TP": layout.tensor,
        "PP": layout.pipeline,
        "VPP": layout.virtual,
        "CP": layout.context,
        "EP": layout.expert,
        "ETP": layout.expert_tensor,
    }
    words = [f"{name}{size}" for name, size in parallel.items() if size > 1]
    words += [f"DP{layout.data}", f"mb{training.micro_batch}"]
    if layout.hierarchical:
        words.append("hierarchical")
    elif layout.fused and layout.expert > 1:
        words.append("fused dispatch")
    elif layout.row_per_expert and layout.expert > 1:
        words.append("stock dispatch")
    elif layout.all_gather and layout.expert > 1:
        words.append("all-gather")
    if training.recompute:
        words.append(f"recompute {'+'.join(sorted(training.recompute))}")
    return " ".join(words)


def memory_parts(memory: Memory) -> dict[str, float]:
    """Bytes by part; their sum is ``memory.total``."""
    # Of activations by part, where it is known.
    activations: Mapping[str, float] = memory.activation_parts
    named = {f"activations: {part}": size for part, size in activations.items()}
    return {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        **(named or {"activations": memory.activations}),
    }


def names_of(parts: Sequence[Mapping[str, float]]) -> list[str]:
    """Of the parts that any of them has more than nothing of, in the order of the first."""
    names = dict.fromkeys(name for one in parts for name in one)
    return [name for name in names if any(one.get(name, 0.0) > 0 for one in parts)]
