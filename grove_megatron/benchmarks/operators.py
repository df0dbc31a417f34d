"""What a layer does beside its experts: the operators of its stages, forward and backward.

On a GPU each of them is a launch, and where they are small the launches are their time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view")


class Operators(TorchDispatchMode):
    """Counts the operators that run while it is active.

    Of ATen and of torch.distributed. Views, detaching and allocations do not count: nothing is
    launched for them. What is launched past the dispatcher, as Triton's kernels are, is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        free = func.is_view or func.overloadpacket.__name__ in _FREE
        self.count += not free
        call: Callable[..., Any] = func
        return call(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Stage:
    """Operators of a stage's forward and backward pass."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        return self.forward + self.backward

    def __add__(self, other: "Stage") -> "Stage":
        return Stage(self.forward + other.forward, self.backward + other.backward)

    def __sub__(self, other: "Stage") -> "Stage":
        return Stage(self.forward - other.forward, self.backward - other.backward)


EXPERTS = "experts"
"""The name of what is counted apart."""


def count_stages(layer: MoELayer, x: Tensor) -> dict[str, Stage]:
    """The operators of every stage of one pass; every rank must call.

    The stages are Megatron's, but that of the experts is divided: ``arrive`` and ``leave`` are
    what its dispatcher does before and after them, ``experts`` is the rest of it.

    Args:
        layer: without shared experts.
        x: [T, 1, H].
    """
    found: dict[str, Stage] = {}
    received = _sent(layer, x, found)
    rows, found["arrive"] = _counted(layer.token_dispatcher.dispatch_postprocess, received)
    _, found["leave"] = _counted(layer.token_dispatcher.combine_preprocess, rows[:1])
    # Megatron's dispatcher keeps its counts for one call: once more, for the whole stage.
    received = _sent(layer, x, found)
    weights = [p for name, p in layer.named_parameters() if "experts" in name]
    (y, _), whole = _counted(layer.routed_experts_compute, received, weights)
    found[EXPERTS] = whole - found["arrive"] - found["leave"]
    y, found["combine"] = _counted(layer.combine, [y])
    _, found["postprocess"] = _counted(lambda rows: layer.postprocess(rows, None), y)
    return found


def _sent(layer: MoELayer, x: Tensor, found: dict[str, Stage]) -> tuple[Any, ...]:
    """What comes to the experts; the stages before them are put into ``found``."""
    weights = list(layer.router.parameters())
    (probs, routing_map), found["route"] = _counted(layer.route, [x], weights)
    sent, found["preprocess"] = _counted(layer.preprocess, [x, probs, routing_map])
    received, found["dispatch"] = _counted(layer.dispatch, sent)
    return received


def beside_experts(stages: dict[str, Stage]) -> Stage:
    """The sum of all other stages."""
    return sum((s for name, s in stages.items() if name != EXPERTS), Stage(0, 0))


def _counted(
    run: Callable[..., Any], given: Iterable[Any], weights: Sequence[Tensor] = ()
) -> tuple[tuple[Any, ...], Stage]:
    """Outputs of a stage on detached inputs, and its operators; a gradient of 1 comes back."""
    inputs = [_leaf(each) for each in given]
    with Operators() as forward:
        made = run(*inputs)
    outputs = made if isinstance(made, tuple) else (made,)
    ends = [y for y in outputs if isinstance(y, Tensor) and y.requires_grad]
    leaves = [x for x in (*inputs, *weights) if isinstance(x, Tensor) and x.requires_grad]
    grads = [torch.ones_like(y) for y in ends]
    with Operators() as backward:
        torch.autograd.grad(ends, leaves, grads, allow_unused=True)
    return outputs, Stage(forward.count, backward.count)


def _leaf(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().requires_grad_(value.is_floating_point())
