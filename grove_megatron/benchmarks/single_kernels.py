"""Every kernel alone, on what the layer gives it, beside the copy or the product it is bound by."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..functional.expand_plan import ExpandPlan
from ..kernels import TORCH, Kernels
from . import ranks
from .harness import Samples, Subject, interleave, queued_cuda_clock, wall_clock
from .shape import Settings


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Of one layer with all experts local; everything but ``grad`` and ``plan`` has a gradient.

    Attributes:
        x, grad: [V, H], received rows and the gradient of the output.
        probs, adjugate_probs: [N], [M] fp32.
        up, adjugate_up: [L, 2F, H], [G, 2f, H].
        down, adjugate_down: [L, H, F], [G, H, f].
        plan: where the pairs lie.
    """

    x: Tensor
    grad: Tensor
    probs: Tensor
    adjugate_probs: Tensor
    up: Tensor
    adjugate_up: Tensor
    down: Tensor
    adjugate_down: Tensor
    plan: ExpandPlan


@dataclass(frozen=True, kw_only=True)
class Call:
    """One kernel with its arguments, and how much work that is.

    Attributes:
        kernel: a field of :class:`Kernels`.
        flops: of a matrix product; 0 for a kernel that only moves rows.
    """

    kernel: str
    arguments: tuple[Any, ...]
    flops: float = 0.0

    def run(self, kernels: Kernels) -> Any:
        return getattr(kernels, self.kernel)(*self.arguments)

    def moved_bytes(self) -> int:
        """Read and written, every argument and every result once, however often it is read."""
        return _bytes((self.arguments, self.run(TORCH)))


@dataclass(frozen=True, kw_only=True)
class Single:
    """How one implementation did.

    Attributes:
        kernel, implementation: names.
        samples: seconds.
        copy: seconds that torch's copy of as many bytes takes; None for a product.
        moved_bytes, flops: of one call; one of them is 0.
    """

    kernel: str
    implementation: str
    samples: Samples
    copy: Samples | None
    moved_bytes: int
    flops: float


def calls(given: Inputs) -> Iterator[Call]:
    """What the forward and backward pass of a layer call, once each."""
    plan, segments = given.plan, given.plan.segments
    detached = {name: t.detach() for name, t in vars(given).items() if isinstance(t, Tensor)}
    x, probs, up, adjugate_up = (detached[n] for n in ("x", "probs", "up", "adjugate_up"))
    down, adjugate_down = (detached[n].transpose(1, 2) for n in ("down", "adjugate_down"))
    x_NH = TORCH.take_rows(x, plan.rows.index)
    h_N, h_M = TORCH.fan_out(x_NH, up, adjugate_up, segments)
    assert h_M is not None
    a_N = TORCH.weighted_swiglu(h_N, probs)
    a_M = TORCH.weighted_swiglu(h_M, detached["adjugate_probs"])
    yield Call(kernel="take_rows", arguments=(x, plan.rows.index))
    yield Call(kernel="sum_rows", arguments=(x_NH, plan.rows.bag_start, plan.rows.bag_index))
    yield Call(kernel="weighted_swiglu", arguments=(h_N, probs))
    yield Call(kernel="weighted_swiglu_grad", arguments=(a_N, h_N, probs))
    up_flops = 2.0 * x.shape[1] * (h_N.numel() + h_M.numel())
    yield Call(kernel="fan_out", arguments=(x_NH, up, adjugate_up, segments), flops=up_flops)
    fc2 = (a_N, a_M, down, adjugate_down, segments)
    yield Call(kernel="fan_in", arguments=fc2, flops=up_flops / 2)
    yield Call(kernel="fan_weights", arguments=(h_N, h_M, x_NH, segments, False), flops=up_flops)


def measure_singles(
    given: Inputs, implementations: dict[str, Kernels], settings: Settings
) -> list[Single]:
    """Time every kernel of every implementation, and the copies, taking turns."""
    made = [(call, 0 if call.flops else call.moved_bytes()) for call in calls(given)]
    subjects = [
        Subject(name=f"{call.kernel} {name}", run=partial(call.run, kernels))
        for call, _ in made
        for name, kernels in implementations.items()
    ]
    subjects += [
        Subject(name=f"{call.kernel} copy", run=copy_of(moved, given.x.device))
        for call, moved in made
        if moved
    ]
    samples = interleave(
        subjects,
        rounds=settings.rounds,
        warmup=settings.warmup,
        clock=queued_cuda_clock if ranks.cuda_is_used() else wall_clock,
    )
    return [
        Single(
            kernel=call.kernel,
            implementation=name,
            samples=samples[f"{call.kernel} {name}"],
            copy=samples.get(f"{call.kernel} copy"),
            moved_bytes=moved,
            flops=call.flops,
        )
        for call, moved in made
        for name in implementations
    ]


def copy_of(moved_bytes: int, device: torch.device) -> Callable[[], Tensor]:
    """A copy that reads half of the bytes and writes the other half."""
    source, target = torch.zeros(2, moved_bytes // 2, dtype=torch.uint8, device=device)
    return partial(target.copy_, source)


def _bytes(values: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if torch.is_tensor(t))
