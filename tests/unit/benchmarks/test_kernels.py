"""Every strategy computes the layer, and what is counted of a kernel is what it moves."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from grove_megatron.benchmarks.agreement import TOLERANCE
from grove_megatron.benchmarks.harness import Samples
from grove_megatron.benchmarks.kernel_findings import Measured, findings, floor
from grove_megatron.benchmarks.kernels import forward_backward, inputs
from grove_megatron.benchmarks.routing import uniform_routing
from grove_megatron.benchmarks.shape import Settings, Shape
from grove_megatron.benchmarks.single_kernels import Inputs, Single, calls, copy_of
from grove_megatron.benchmarks.strategies import choose
from grove_megatron.benchmarks.work import Work
from grove_megatron.functional.reference import grove_layer, swiglu
from grove_megatron.kernels import TORCH
from grove_megatron.runtime import cpu

SHAPE = Shape(tokens=9, hidden=16, experts=8, groups=2, topk=3, expert_width=12, adjugate_width=4)
SEED = 5


@pytest.fixture(scope="module")
def given() -> Iterator[Inputs]:
    with cpu():
        torch.manual_seed(0)
        yield inputs(SHAPE, SEED)


def expected(given: Inputs, scale: float) -> dict[str, Tensor]:
    """The layer as the paper writes it, one token at a time."""
    generator = torch.Generator().manual_seed(SEED)
    probs, routing_map = uniform_routing(SHAPE.tokens, SHAPE.experts, SHAPE.topk, generator)
    names = ("x", "up", "down", "adjugate_up", "adjugate_down")
    leaves = {name: getattr(given, name).detach().double().requires_grad_() for name in names}
    leaves["probs"] = probs.double().requires_grad_()

    def ffn(up: Tensor, down: Tensor, i: int) -> object:
        return lambda x: swiglu(x, up[i], down[i])

    experts = [ffn(leaves["up"], leaves["down"], i) for i in range(8)]
    adjugates = [ffn(leaves["adjugate_up"], leaves["adjugate_down"], j) for j in range(2)]
    y = grove_layer(leaves["x"], leaves["probs"], routing_map, experts, adjugates, scale)
    y.backward(given.grad.double())
    grads = {f"gradient of {name}": leaf.grad for name, leaf in leaves.items()}
    return {"output": y.detach(), **{n: g for n, g in grads.items() if g is not None}}


def with_probs_by_token(given: Inputs, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of both kinds of weights, as one of the router's [T, E]."""
    total = torch.zeros(SHAPE.tokens * SHAPE.experts)
    total[given.plan.position_N] = found["gradient of probs"]
    total = total.view(SHAPE.tokens, SHAPE.experts)
    if (grad_M := found.pop("gradient of adjugate_probs", None)) is not None:
        of_groups = torch.zeros(SHAPE.tokens * SHAPE.groups)
        of_groups[given.plan.owner_position_M] = grad_M
        total = total + of_groups.view(SHAPE.tokens, -1).repeat_interleave(4, 1) * (total != 0)
    return found | {"gradient of probs": total}


@pytest.mark.parametrize("adjugates", [True, False])
def test_every_strategy_is_the_layer_with_every_gradient(given: Inputs, adjugates: bool) -> None:
    strategies = choose(torch.float32, torch.device("cpu"), 1, hidden=16, width=12).strategies
    reference = expected(given, scale=float(adjugates))
    assert len(strategies) == 3
    for kernels in strategies.values():
        found = forward_backward(given, kernels, adjugates=adjugates)
        assert len(found) == (8 if adjugates else 5)
        for name, tensor in with_probs_by_token(given, found).items():
            error = (tensor - reference[name]).abs().max() / reference[name].abs().max()
            assert error < TOLERANCE[torch.float32], name


def test_what_is_counted_of_every_kernel(given: Inputs) -> None:
    pairs, owners = given.plan.segments.num_pairs, given.plan.segments.num_owner_pairs
    assert pairs == 9 * 3
    counted = {call.kernel: call for call in calls(given)}
    assert set(counted) == set(vars(TORCH)) - {"name"}
    row, f = 16 * 4, 12 * 4
    moved = {
        "take_rows": (9 + pairs) * row + pairs * 8,
        "sum_rows": (9 + pairs) * row + pairs * 8 + 10 * 8,
        "weighted_swiglu": pairs * (2 * f + f + 4),
        "weighted_swiglu_grad": pairs * (f + 2 * f + 2 * f + 4 + 4),
    }
    assert {name: counted[name].moved_bytes() for name in moved} == moved
    flops = {name: call.flops for name, call in counted.items() if call.flops}
    fc2 = 2 * 16 * (pairs * 12 + owners * 4)
    assert flops == {"fan_out": 2 * fc2, "fan_in": fc2, "fan_weights": 2 * fc2}


def test_a_copy_moves_the_bytes_it_is_compared_by() -> None:
    target = copy_of(1000, torch.device("cpu"))()
    assert 2 * target.numel() * target.element_size() == 1000


def test_routing_chooses_as_many_experts_for_every_token_with_weights_of_sum_1() -> None:
    probs, routing_map = uniform_routing(50, 8, 3, torch.Generator().manual_seed(0))
    assert routing_map.sum(1).tolist() == [3] * 50
    assert ((probs > 0) == routing_map).all()
    torch.testing.assert_close(probs.sum(1), torch.ones(50))
    assert (routing_map.sum(0) > 5).all(), "every expert is somebody's"


def measured() -> Measured:
    """Owner rows of 3 s, separate of 4 s, experts alone of 2 s; a copy, and a product."""

    def single(kernel: str, seconds: float, **counts: object) -> Single:
        return Single(kernel=kernel, implementation="torch", samples=Samples((seconds,)), **counts)

    return Measured(
        samples={
            "owner_rows": Samples((3.0,)),
            "separate": Samples((4.0,)),
            "experts_only": Samples((2.5,)),
            "experts_only_triton": Samples((2.0,)),
        },
        skipped={"triton": "no CUDA device"},
        singles=[
            single("take_rows", 2.0, copy=Samples((1.0,)), moved_bytes=4 * 10**9, flops=0.0),
            single("fan_out", 2.0, copy=None, moved_bytes=0, flops=6e12),
        ],
        work=Work(tokens=9, pairs=27, adjugate_pairs=18),
        matmul_flops=4e12,
    )


def test_ratios_are_to_owner_rows_and_to_the_fastest_experts_alone() -> None:
    m = measured()
    settings = Settings(
        benchmark="kernels", preset="small", shape=SHAPE, ranks=1, rounds=1, warmup=0
    )
    found = findings(settings, m)
    assert floor(m).median == 2.0
    assert found.summary == {
        "owner_rows_vs_experts_only": 1.5,
        "separate_vs_owner_rows": 4 / 3,
        "separate_vs_experts_only": 2.0,
        "concatenated_vs_owner_rows": None,
        "concatenated_vs_experts_only": None,
        "two_streams_vs_owner_rows": None,
        "two_streams_vs_experts_only": None,
        "triton_vs_owner_rows": None,
        "triton_vs_experts_only": None,
        "flop_ratio": (27 * 12 + 18 * 4) / (27 * 12),
        "take_rows_torch_copy_share": 0.5,
        "fan_out_torch_matmul_share": 0.75,
    }
    shown = {line[0]: line for line in found.tables[0].lines}
    assert shown["triton"][1] == "skipped"
    assert shown["separate"][2:5] == ("1.333", "2.000", "1.222")
    assert shown["experts_only"][2:5] == ("0.833", "1.250", "1.000")
    assert "triton: skipped, no CUDA device" in found.notes
    by_quantity = {(v.variant, v.kernel, v.quantity): v.p50 for v in found.values}
    assert by_quantity["take_rows", "torch", "gigabytes"] == 2.0
    assert by_quantity["fan_out", "torch", "tflops"] == 3.0
    flops = 3 * 2 * 3 * 16 * (27 * 12 + 18 * 4)
    assert by_quantity["owner_rows", "", "tflops"] == pytest.approx(flops / 3 / 1e12, rel=1e-4)
