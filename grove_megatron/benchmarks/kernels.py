"""``grove bench kernels``: ways to compute experts and adjugates on the same rows, and each kernel.

The strategies take turns on the same inputs, forward and backward: copy rows out, fc1, weighted
SwiGLU, fc2, sum rows. Beside them the experts without adjugates, which is the least it could cost.
"""

from functools import partial

import torch
from torch import Tensor

from ..functional.activation import weighted_swiglu
from ..functional.dispatch_plan import pack_probs
from ..functional.expand_plan import ExpandPlan, plan_expand, unpack_probs
from ..functional.groups import group_map
from ..functional.permute import expand_rows, reduce_rows
from ..functional.products import grouped_down, grouped_up
from ..kernels import Kernels
from . import ranks
from .agreement import check_same
from .harness import Samples, Subject, cuda_clock, interleave, wall_clock
from .kernel_findings import FLOOR, Measured, findings
from .peaks import matmul_flops_per_second
from .report import Findings
from .routing import uniform_routing
from .shape import Settings, Shape
from .single_kernels import Inputs, measure_singles
from .strategies import choose
from .variants import DTYPES
from .work import Work


def measure(settings: Settings) -> Findings:
    """Check that all strategies agree, time them, and time every kernel alone."""
    with ranks.process_groups(settings.ranks, settings.seed):
        given = inputs(settings.shape, settings.seed)
        choice = choose(
            given.x.dtype,
            given.x.device,
            given.plan.segments.num_pairs,
            hidden=given.x.shape[1],
            expert_width=given.down.shape[2],
            adjugate_width=given.adjugate_down.shape[2],
        )
        expected = forward_backward(given, choice.strategies["owner_rows"])
        for name, kernels in choice.strategies.items():
            check_same(f"{name} beside owner_rows", forward_backward(given, kernels), expected)
        del expected
        segments = given.plan.segments
        measured = Measured(
            samples=_times(settings, given, choice.strategies),
            skipped=choice.skipped,
            singles=measure_singles(given, choice.implementations, settings),
            work=Work(settings.shape.tokens, segments.num_pairs, segments.num_owner_pairs),
            matmul_flops=matmul_flops_per_second(given.x.dtype),
        )
    return findings(settings, measured)


def inputs(shape: Shape, seed: int) -> Inputs:
    """Random rows and matrices, and the plan of a uniformly random routing; all experts local."""
    device, dtype = torch.cuda.current_device(), DTYPES[shape.dtype]
    probs, routing_map = uniform_routing(
        shape.tokens, shape.experts, shape.topk, torch.Generator().manual_seed(seed)
    )
    per_expert = routing_map.sum(0)
    per_group = group_map(routing_map, shape.groups).sum(0)
    packed = pack_probs(probs, routing_map).to(device)
    plan = plan_expand(packed, per_expert, per_group)
    probs_N, adjugate_probs_M = unpack_probs(packed, plan)

    def matrices(count: int, out: int, into: int) -> Tensor:
        made = torch.randn(count, out, into, device=device, dtype=dtype)
        return made.mul_(into**-0.5).requires_grad_()

    return Inputs(
        x=torch.randn(shape.tokens, shape.hidden, device=device, dtype=dtype).requires_grad_(),
        grad=torch.randn(shape.tokens, shape.hidden, device=device, dtype=dtype),
        probs=probs_N.requires_grad_(),
        adjugate_probs=adjugate_probs_M.requires_grad_(),
        up=matrices(shape.experts, 2 * shape.expert_width, shape.hidden),
        adjugate_up=matrices(shape.groups, 2 * shape.adjugate_width, shape.hidden),
        down=matrices(shape.experts, shape.hidden, shape.expert_width),
        adjugate_down=matrices(shape.groups, shape.hidden, shape.adjugate_width),
        plan=plan,
    )


def forward_backward(
    given: Inputs, kernels: Kernels, *, adjugates: bool = True
) -> dict[str, Tensor]:
    """The output [V, H] and every gradient; experts alone without ``adjugates``."""
    plan: ExpandPlan = given.plan
    leaves = {name: getattr(given, name) for name in ("x", "probs", "up", "down")}
    narrow: dict[str, Tensor] = {}
    if adjugates:
        names = ("adjugate_probs", "adjugate_up", "adjugate_down")
        narrow = {name: getattr(given, name) for name in names}
    x_NH = expand_rows(given.x, plan.rows, kernels)
    h_N, h_M = grouped_up(x_NH, given.up, narrow.get("adjugate_up"), plan.segments, kernels)
    a_N = weighted_swiglu(h_N, given.probs, kernels)
    a_M = None if h_M is None else weighted_swiglu(h_M, given.adjugate_probs, kernels)
    down, adjugate_down = given.down, narrow.get("adjugate_down")
    y_NH = grouped_down(a_N, a_M, down, adjugate_down, plan.segments, kernels)
    y = reduce_rows(y_NH, plan.rows, kernels)
    leaves |= narrow
    grads = torch.autograd.grad(y, list(leaves.values()), given.grad)
    return {
        "output": y.detach(),
        **{f"gradient of {name}": g for name, g in zip(leaves, grads, strict=True)},
    }


def _times(settings: Settings, given: Inputs, strategies: dict[str, Kernels]) -> dict[str, Samples]:
    subjects = [
        Subject(name=name, run=partial(forward_backward, given, kernels))
        for name, kernels in strategies.items()
    ]
    for name, strategy in FLOOR.items():
        if strategy in strategies:
            run = partial(forward_backward, given, strategies[strategy], adjugates=False)
            subjects.append(Subject(name=name, run=run))
    return interleave(
        subjects,
        rounds=settings.rounds,
        warmup=settings.warmup,
        clock=cuda_clock if ranks.cuda_is_used() else wall_clock,
    )
