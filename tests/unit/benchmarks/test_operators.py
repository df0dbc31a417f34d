"""Operators, counted one by one; and what is said about them."""

from types import SimpleNamespace
from typing import Any

import torch

from grove_megatron.benchmarks.operator_findings import (
    operator_table,
    operator_values,
    operators_ratio,
)
from grove_megatron.benchmarks.operators import Operators, Stage, beside_experts, count_stages

STAGES = {"route": Stage(9, 6), "arrive": Stage(2, 3), "experts": Stage(100, 200)}
PLAIN, GROVE = ("plain", "grouped"), ("grove", "grouped")


def count(run: Any) -> int:
    with Operators() as seen:
        run()
    return seen.count


def test_what_computes_or_copies_counts_and_what_does_not_is_free() -> None:
    x = torch.ones(4, 6)
    assert count(lambda: x + 1) == 1
    assert count(lambda: x.clone().add_(1)) == 2
    assert count(lambda: x.T.contiguous()) == 1
    assert count(lambda: x.view(24).reshape(2, 12).T[1].detach()) == 0
    assert count(lambda: torch.empty(3)) == count(lambda: torch.empty_like(x)) == 0
    assert count(lambda: (x.T @ x).unsqueeze(0)) == 1


def test_the_operators_of_an_autograd_function_are_seen_in_both_directions() -> None:
    x = torch.ones(3, requires_grad=True)
    made: list[torch.Tensor] = []
    assert count(lambda: made.append(torch.sin(x) * 2)) == 2
    # * 2, cos, * cos
    grad = torch.ones(3)
    assert count(lambda: torch.autograd.grad(made[0], x, grad)) == 3


def layer(scale: float) -> Any:
    """Stages with so many operators, forward and backward, that none is like another.

    Its dispatcher forgets what a call left it, as Megatron's does.
    """

    def times(count: int) -> Any:
        def run(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            for _ in range(count):
                x = x * scale
            return x

        return run

    router = torch.nn.Linear(2, 2, bias=False)
    counts: list[int] = []

    def route(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probs = router(x)
        return probs, probs.detach() > 0

    def dispatch(x: torch.Tensor, probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counts.append(1)
        return times(2)(x), probs

    def arrive(x: torch.Tensor, probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counts.pop()
        return times(3)(x), probs

    def routed(x: torch.Tensor, probs: torch.Tensor) -> tuple[torch.Tensor, None]:
        x, _ = arrive(x, probs)
        return times(4)(times(7)(x)), None

    return SimpleNamespace(
        router=router,
        named_parameters=lambda: [("router.weight", router.weight)],
        token_dispatcher=SimpleNamespace(dispatch_postprocess=arrive, combine_preprocess=times(4)),
        route=route,
        preprocess=lambda x, probs, routing_map: (times(1)(x), probs),
        dispatch=dispatch,
        routed_experts_compute=routed,
        combine=times(5),
        postprocess=lambda x, shared: times(6)(x),
    )


def test_every_stage_has_its_own_and_the_experts_are_what_is_left_of_theirs() -> None:
    found = count_stages(layer(2.0), torch.ones(3, 2))
    # A product and a comparison; the gradients of both factors.
    assert found.pop("route") == Stage(2, 2)
    expected = {"preprocess": 1, "dispatch": 2, "arrive": 3, "leave": 4, "experts": 7}
    expected |= {"combine": 5, "postprocess": 6}
    assert found == {name: Stage(n, n) for name, n in expected.items()}


def test_the_sum_leaves_the_experts_out() -> None:
    assert beside_experts(STAGES) == Stage(11, 9)
    twice = {name: stage + stage for name, stage in STAGES.items()}
    assert operators_ratio({PLAIN: STAGES, GROVE: twice | {"experts": Stage(0, 0)}}) == 2
    assert operators_ratio({GROVE: STAGES}) is None


def test_both_passes_are_shown_and_recorded() -> None:
    (table,) = operator_table({PLAIN: STAGES, GROVE: STAGES | {"arrive": Stage(5, 6)}}, ranks=2)
    assert table.header == ("", "plain", "grove")
    assert list(table.lines) == [
        ("route", "9 + 6", "9 + 6"),
        ("arrive", "2 + 3", "5 + 6"),
        ("beside the experts", "11 + 9", "14 + 12"),
        ("experts", "100 + 200", "100 + 200"),
    ]
    values = operator_values({PLAIN: STAGES})
    assert {(v.quantity, v.p50) for v in values if "arrive" in v.quantity} == {
        ("forward operators of arrive", 2),
        ("backward operators of arrive", 3),
    }
    assert {(v.variant, v.kernel, v.unit) for v in values} == {("plain", "grouped", "operators")}
    assert operator_table({}, ranks=1) == []
