from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from grove_megatron.functional.expand_plan import Segments
from grove_megatron.functional.products import grouped_down, grouped_up
from grove_megatron.kernels import TORCH
from grove_megatron.kernels.torch_products import grouped_why_not
from tests.unit.functional.pairs import SELECTIONS, Pairs, pairs_of, selection

EXPERTS = 8
FITTING, ODD = (8, 12, 4), (5, 3, 1)  # hidden, width, adjugate width
PRECISIONS = [
    pytest.param(torch.float64, FITTING, id="fp64"),
    pytest.param(torch.float64, ODD, id="fp64-odd"),
    pytest.param(torch.float32, FITTING, id="fp32"),
    pytest.param(torch.float32, ODD, id="fp32-odd"),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def up_in_loops(pairs: Pairs, x: Tensor, wide: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor]:
    h_N = [wide[e] @ row for row, e in zip(x, pairs.expert_N, strict=True)]
    h_M = [narrow[j] @ x[n] for n, j in zip(pairs.owner_M, pairs.group_M, strict=True)]
    return _stacked(h_N, wide), _stacked(h_M, narrow)


def down_in_loops(pairs: Pairs, p: Tensor, q: Tensor, wide: Tensor, narrow: Tensor) -> Tensor:
    y = [wide[e] @ row for row, e in zip(p, pairs.expert_N, strict=True)]
    for n, j, row in zip(pairs.owner_M, pairs.group_M, q, strict=True):
        y[n] = y[n] + narrow[j] @ row
    return _stacked(y, wide)


def _stacked(rows: list[Tensor], weight: Tensor) -> Tensor:
    return torch.stack(rows) if rows else 0.0 * weight.sum((0, 2)).expand(0, -1)


def up_leaves(pairs: Pairs, dtype: torch.dtype, widths: tuple[int, int, int]) -> list[Tensor]:
    hidden, width, adjugate = widths
    return _random(
        dtype,
        (len(pairs.expert_N), hidden),
        (pairs.num_experts, 2 * width, hidden),
        (pairs.num_groups, 2 * adjugate, hidden),
    )


def down_leaves(pairs: Pairs, dtype: torch.dtype, widths: tuple[int, int, int]) -> list[Tensor]:
    hidden, width, adjugate = widths
    return _random(
        dtype,
        (len(pairs.expert_N), width),
        (len(pairs.owner_M), adjugate),
        (pairs.num_experts, hidden, width),
        (pairs.num_groups, hidden, adjugate),
    )


def _random(dtype: torch.dtype, *shapes: tuple[int, ...], seed: int = 1) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]
    return [x.to(dtype).requires_grad_() for x in drawn]


def assert_same(ours: Callable, loops: Callable, leaves: list[Tensor], tolerance: float) -> None:
    """Every output, and the gradient of every leaf; the loops run in fp64."""
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, expected = ours(*leaves), loops(*exact)
    if isinstance(found, Tensor):
        found, expected = (found,), (expected,)
    upstream = _random(leaves[0].dtype, *(y.shape for y in expected), seed=2)
    grads = torch.autograd.grad(found, leaves, upstream)
    exact_upstream = [up.double() for up in upstream]
    exact_grads = torch.autograd.grad(expected, exact, exact_upstream, materialize_grads=True)
    for mine, theirs in zip((*found, *grads), (*expected, *exact_grads), strict=True):
        assert mine.dtype == leaves[0].dtype
        assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", SELECTIONS)
@pytest.mark.parametrize("per_group", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "widths"), PRECISIONS)
class TestAgainstLoops:
    def test_up(self, kind, per_group, dtype, widths):
        pairs = pairs_of(selection(kind, EXPERTS), EXPERTS // per_group)
        assert_same(
            lambda x, wide, narrow: grouped_up(x, wide, narrow, pairs.segments),
            lambda *leaves: up_in_loops(pairs, *leaves),
            up_leaves(pairs, dtype, widths),
            TOLERANCE[dtype],
        )

    def test_down(self, kind, per_group, dtype, widths):
        pairs = pairs_of(selection(kind, EXPERTS), EXPERTS // per_group)
        assert_same(
            lambda p, q, wide, narrow: grouped_down(p, q, wide, narrow, pairs.segments),
            lambda *leaves: down_in_loops(pairs, *leaves),
            down_leaves(pairs, dtype, widths),
            TOLERANCE[dtype],
        )


def test_these_sizes_take_torch_s_grouped_product_in_fp32_and_the_loops_otherwise():
    hidden, width, adjugate = FITTING
    assert grouped_why_not(torch.float32, hidden, 2 * width, width, adjugate) is None
    assert grouped_why_not(torch.float64, hidden, width) is not None
    assert grouped_why_not(torch.float32, ODD[0], 4) is not None
    assert grouped_why_not(torch.float32, 4, ODD[1]) is not None


def test_with_four_experts_a_group_owners_lie_apart():
    """What the cases above have to contain: other rows between the owners of one group."""
    pairs = pairs_of(selection("some", EXPERTS), 2)
    of_group = [n for n, j in zip(pairs.owner_M, pairs.group_M, strict=True) if j == 0]
    assert of_group != list(range(of_group[0], of_group[-1] + 1))


def test_matrices_without_rows_get_a_gradient_of_zero():
    pairs = pairs_of(selection("empty group", EXPERTS), 2)
    leaves = up_leaves(pairs, torch.float32, FITTING)
    h_N, h_M = grouped_up(*leaves, pairs.segments)
    _, dwide, dnarrow = torch.autograd.grad((h_N.sum(), h_M.sum()), leaves)
    assert not dwide[:4].any()
    assert not dnarrow[0].any()
    assert dwide[4:].any()
    assert dnarrow[1].any()


@pytest.mark.parametrize(("dtype", "widths"), PRECISIONS)
def test_experts_run_alone_without_narrow_matrices(dtype, widths):
    tokens_per_expert = torch.tensor([3, 0, 2])
    segments = Segments.of_experts(tokens_per_expert, torch.device("cpu"))
    expert_N = torch.arange(3).repeat_interleave(tokens_per_expert)
    hidden, width, _ = widths

    def up(x: Tensor, wide: Tensor) -> Tensor:
        h, none = grouped_up(x, wide, None, segments)
        assert none is None
        return h

    def down(p: Tensor, wide: Tensor) -> Tensor:
        return grouped_down(p, None, wide, None, segments)

    def loops(x: Tensor, wide: Tensor) -> Tensor:
        return torch.stack([wide[e] @ row for row, e in zip(x, expert_N.tolist(), strict=True)])

    leaves = _random(dtype, (5, hidden), (3, 2 * width, hidden))
    assert_same(up, loops, leaves, TOLERANCE[dtype])
    leaves = _random(dtype, (5, width), (3, hidden, width))
    assert_same(down, loops, leaves, TOLERANCE[dtype])


@pytest.mark.parametrize("widths", [(16, 8, 8), (9, 3, 1)])
def test_bf16_products_are_rounded_about_once(widths):
    """A sum in bf16, or one more rounding of a large intermediate, would be off by more."""
    pairs = pairs_of(selection("some", EXPERTS, rows=200), 2)
    cases = [
        (lambda *a: grouped_up(*a, pairs.segments), up_in_loops, up_leaves),
        (lambda *a: grouped_down(*a, pairs.segments), down_in_loops, down_leaves),
    ]
    for ours, loops, make in cases:
        leaves = make(pairs, torch.bfloat16, widths)
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        found, expected = ours(*leaves), loops(pairs, *exact)
        if isinstance(found, Tensor):
            found, expected = (found,), (expected,)
        ones = [torch.ones_like(y) for y in found]
        grads = torch.autograd.grad(found, leaves, ones)
        exact_grads = torch.autograd.grad(expected, exact, [one.double() for one in ones])
        for mine, theirs in zip((*found, *grads), (*expected, *exact_grads), strict=True):
            error = (mine.double() - theirs).abs().max() / theirs.abs().max()
            # One rounding is half of eps of the largest; owner rows are rounded twice.
            assert error <= torch.finfo(torch.bfloat16).eps


def test_upstream_gradients_of_any_strides_reach_the_kernels_contiguous():
    pairs = pairs_of(selection("some", EXPERTS), 4)
    seen = []

    def fan_in(p, q, *rest):
        seen.extend([p.is_contiguous(), q.is_contiguous()])
        return TORCH.fan_in(p, q, *rest)

    def fan_out(x, *rest):
        seen.append(x.is_contiguous())
        return TORCH.fan_out(x, *rest)

    up, down = up_leaves(pairs, torch.float64, ODD), down_leaves(pairs, torch.float64, ODD)
    h_N, h_M = grouped_up(*up, pairs.segments, replace(TORCH, fan_in=fan_in))
    (h_N.sum() + h_M.sum()).backward()
    grouped_down(*down, pairs.segments, replace(TORCH, fan_out=fan_out)).sum().backward()
    assert seen == [True] * 3


def test_an_output_that_nobody_used_has_no_part_in_the_gradients():
    pairs = pairs_of(selection("some", EXPERTS), 4)
    leaves = up_leaves(pairs, torch.float64, FITTING)
    for used in (0, 1):
        found = grouped_up(*leaves, pairs.segments)[used]
        expected = up_in_loops(pairs, *leaves)[used]
        upstream = torch.ones_like(found)
        grads = torch.autograd.grad(found, leaves, upstream)
        theirs = torch.autograd.grad(expected, leaves, upstream, materialize_grads=True)
        assert_close(grads, theirs, rtol=1e-12, atol=1e-12)
