"""Every kernel on the GPU against plain torch in fp64, in the shapes in which a layer calls it."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from grove_megatron.functional.expand_plan import ExpandPlan
from grove_megatron.kernels import TORCH, Kernels, torch_products
from tests.gpu.operands import GROVE_33B, ODD, Operands, Shape, operands

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("exact_fp32")]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Results = dict[str, Tensor | None]


@pytest.fixture
def kernels(triton: None) -> Kernels:
    from grove_megatron.kernels.triton_kernels import TRITON

    return TRITON


def products(kernels: Kernels, o: Operands, plan: ExpandPlan, *, adjugates: bool) -> Results:
    """Up and down, forward and backward: both layouts of the matrices, both of their gradients."""
    segments = plan.segments
    down = o.down.transpose(1, 2)
    h_M, a_M = (o.h_M, o.a_M) if adjugates else (None, None)
    up_G, down_G = (o.up_G, o.down_G.transpose(1, 2)) if adjugates else (None, None)
    found: Results = {}
    found["up"], found["up, adjugates"] = kernels.fan_out(o.x, o.up, up_G, segments)
    found["down"] = kernels.fan_in(o.a, a_M, down, down_G, segments)
    found["d up"], found["d up, adjugates"] = kernels.fan_weights(o.h, h_M, o.x, segments, False)
    found["d down"], found["d down, adjugates"] = kernels.fan_weights(o.a, a_M, o.x, segments, True)
    found["d x"] = kernels.fan_in(o.h, h_M, o.up, up_G, segments)
    found["d a"], found["d a, adjugates"] = kernels.fan_out(o.x, down, down_G, segments)
    return found


def rows_and_activation(kernels: Kernels, o: Operands, plan: ExpandPlan) -> Results:
    rows = plan.rows
    found: Results = {
        "taken": kernels.take_rows(o.rows, rows.index),
        "summed": kernels.sum_rows(o.x, rows.bag_start, rows.bag_index),
        "activated": kernels.weighted_swiglu(o.h, o.weight),
    }
    found["d h"], found["d weight"] = kernels.weighted_swiglu_grad(o.a, o.h, o.weight)
    return found


def assert_close(
    found: Results, exact: Results, dtype: torch.dtype, *, roundings: float, of_scale: float
) -> None:
    """``found`` is ``exact`` up to its roundings to ``dtype`` and the errors of fp32 sums.

    Args:
        roundings: how often a value may be off by a whole unit in the last place of ``dtype``.
        of_scale: how far it may be off beside that, as a part of the largest value.
    """
    assert found.keys() == exact.keys()
    for name, expected in exact.items():
        tensor = found[name]
        assert (tensor is None) == (expected is None), name
        if tensor is None or expected is None:
            continue
        assert tensor.shape == expected.shape, name
        assert tensor.dtype == (torch.float32 if name == "d weight" else dtype), name
        expected = expected.to(tensor.device)
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        unit = 0.0 if tensor.dtype == torch.float32 else torch.finfo(dtype).eps
        torch.testing.assert_close(
            tensor.double(),
            expected,
            rtol=roundings * unit,
            atol=of_scale * scale,
            msg=lambda text, name=name: f"{name}: {text}",
        )


# Sums in fp32 of some thousand terms; what tensor cores leave of them where factors have 16 bit.
SUMS = {torch.float32: 4e-6, torch.bfloat16: 4e-5, torch.float16: 4e-5}
# Sigmoids of Triton are made of fast exponentials.
ACTIVATION = 1e-5


def check_all(kernels: Kernels, shape: Shape, dtype: torch.dtype) -> None:
    plan = shape.plan()
    o = operands(shape, plan, dtype)
    exact = o.to_fp64()
    for adjugates in (True, False):
        assert_close(
            products(kernels, o, plan, adjugates=adjugates),
            products(TORCH, exact, plan, adjugates=adjugates),
            dtype,
            roundings=1,
            of_scale=SUMS[dtype],
        )
    assert_close(
        rows_and_activation(kernels, o, plan),
        rows_and_activation(TORCH, exact, plan),
        dtype,
        roundings=1,
        of_scale=ACTIVATION,
    )
    taken = kernels.take_rows(o.rows, plan.rows.index)
    assert torch.equal(taken, o.rows[plan.rows.index]), "rows are copied, not computed"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_triton_s_at_the_shapes_of_the_released_model(kernels: Kernels, dtype: torch.dtype) -> None:
    check_all(kernels, GROVE_33B, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ODD)
def test_triton_s_at_odd_shapes(kernels: Kernels, name: str, dtype: torch.dtype) -> None:
    check_all(kernels, ODD[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_triton_s_where_torch_is_asked_for_determinism(
    kernels: Kernels, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tiles then, and only for the kernels: what they are compared with is left alone."""
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    check_all(kernels, ODD["groups of two"], dtype)
    again = [_all_products(kernels, dtype) for _ in range(2)]
    for name, tensor in again[0].items():
        assert torch.equal(tensor, again[1][name]), name


def _all_products(kernels: Kernels, dtype: torch.dtype) -> dict[str, Tensor]:
    shape = ODD["groups of two"]
    plan = shape.plan()
    found = products(kernels, operands(shape, plan, dtype), plan, adjugates=True)
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def test_triton_s_use_tf32_where_torch_does(kernels: Kernels) -> None:
    shape = ODD["groups of two"]
    plan = shape.plan()
    o = operands(shape, plan, torch.float32)
    exact = products(TORCH, o.to_fp64(), plan, adjugates=True)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    found = products(kernels, o, plan, adjugates=True)
    # Factors of 11 bits: neither closer, which would be fp32, nor much further off.
    assert_close(found, exact, torch.float32, roundings=0, of_scale=2e-3)
    with pytest.raises(AssertionError):
        assert_close(found, exact, torch.float32, roundings=0, of_scale=SUMS[torch.float32])


def test_triton_s_take_gates_that_overflow_an_exponential(kernels: Kernels) -> None:
    gate = torch.tensor([[-1e4, -100.0, -90.0, 0.0, 90.0, 100.0, 1e4, 1e-30]], device="cuda")
    h = torch.cat([gate, torch.ones_like(gate)], 1)
    weight, grad = torch.ones(1, device="cuda"), torch.ones_like(gate)
    torch.testing.assert_close(
        kernels.weighted_swiglu(h, weight), F.silu(gate), rtol=1e-5, atol=1e-30
    )
    dh, dweight = kernels.weighted_swiglu_grad(grad, h, weight)
    exact_dh, exact_dweight = TORCH.weighted_swiglu_grad(grad.double(), h.double(), weight.double())
    torch.testing.assert_close(dh.double(), exact_dh, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(dweight.double(), exact_dweight, rtol=1e-5, atol=0.0)


class TestTorchOnTheDevice:
    """Plain torch takes another way on a GPU; the loops that a CPU takes are its oracle."""

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("name", ODD)
    def test_the_products(self, name: str, dtype: torch.dtype) -> None:
        shape = ODD[name]
        plan, there = shape.plan(), shape.plan("cpu")
        o = operands(shape, plan, dtype)
        assert torch_products._on_device(o.x, o.up_G)
        exact = o.to_fp64("cpu")
        assert not torch_products._on_device(exact.x, exact.up_G)
        for adjugates in (True, False):
            assert_close(
                products(TORCH, o, plan, adjugates=adjugates),
                products(TORCH, exact, there, adjugates=adjugates),
                dtype,
                roundings=1,
                # Experts and adjugates are rounded apart, and their sum may be much smaller.
                of_scale=4e-6 if dtype == torch.float32 else torch.finfo(dtype).eps,
            )

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("name", ODD)
    def test_rows_and_activation(self, name: str, dtype: torch.dtype) -> None:
        shape = ODD[name]
        plan, there = shape.plan(), shape.plan("cpu")
        o = operands(shape, plan, dtype)
        assert_close(
            rows_and_activation(TORCH, o, plan),
            rows_and_activation(TORCH, o.to_fp64("cpu"), there),
            dtype,
            roundings=1,
            of_scale=ACTIVATION,
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_widths_that_a_grouped_product_does_not_take(self, dtype: torch.dtype) -> None:
        shape = Shape(tokens=31, topk=3, experts=8, groups=4, hidden=22, width=10, adjugate=6)
        plan, there = shape.plan(), shape.plan("cpu")
        o = operands(shape, plan, dtype)
        assert not torch_products._on_device(o.x, o.up_G)
        found, exact = (
            (products(TORCH, x, p, adjugates=True), rows_and_activation(TORCH, x, p))
            for x, p in ((o, plan), (o.to_fp64("cpu"), there))
        )
        for ours, theirs in zip(found, exact, strict=True):
            for name, expected in theirs.items():
                tensor = ours[name]
                assert tensor is not None
                assert expected is not None
                assert tensor.device.type == "cuda"
                scale = float(expected.abs().max())
                unit = torch.finfo(dtype).eps
                torch.testing.assert_close(
                    tensor.cpu().double(), expected, rtol=3 * unit, atol=16 * unit * scale
                )


def index_tensors(plan: ExpandPlan) -> list[Tensor]:
    return [
        *vars(plan.rows).values(),
        *vars(plan.rows_of_both()).values(),
        plan.position_N,
        plan.owner_position_M,
        plan.segments.expert_end,
        plan.segments.owner_end,
        plan.segments.owner_index,
    ]


@pytest.mark.parametrize("name", ODD)
def test_the_plan_of_the_pairs_is_that_of_the_cpu(name: str) -> None:
    here, there = (index_tensors(ODD[name].plan(device)) for device in ("cuda", "cpu"))
    for ours, theirs in zip(here, there, strict=True):
        assert ours.device.type == "cuda"
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours.cpu(), theirs)
