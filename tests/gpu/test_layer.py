"""The whole layer on one GPU: all kernels, what they pass over, and how often the host waits."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from grove_megatron.functional import dispatch_plan
from grove_megatron.functional.permute import expand_rows, reduce_rows
from grove_megatron.kernels import TORCH
from grove_megatron.moe import kernel_choice
from grove_megatron.moe.counts import LayerCounts
from tests.gpu.layers import (
    SMALL,
    TOKENS,
    assert_close,
    by_the_paper,
    grove_layer_of,
    load,
    run,
    run_routed,
    tokens,
    weights,
)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_gpu", "exact_fp32")]

# Of the norm of a tensor. What the roundings of a whole layer leave, measured on a CPU with
# Megatron's experts: 1e-15, 2e-6, 5e-3, 6e-4.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 3e-5,
    torch.bfloat16: 1.2e-2,
    torch.float16: 1.5e-3,
}
KERNELS = ("triton", "grouped", "megatron", "auto")
# The layer of the released model.
GROVE_33B = {
    "hidden_size": 2048,
    "num_moe_experts": 128,
    "moe_ffn_hidden_size": 768,
    "moe_router_topk": 8,
    "grove_num_groups": 64,
    "grove_adjugate_ffn_hidden_size": 128,
    "init_method_std": 0.02,
}


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What the choice of kernels has logged in this test; it logs every line once."""
    kernel_choice.log_once.cache_clear()
    yield lambda: [r.getMessage() for r in caplog.records if r.name == kernel_choice.__name__]
    kernel_choice.log_once.cache_clear()


Lines = Callable[[], list[str]]


@pytest.mark.usefixtures("triton")
class TestKernels:
    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_the_layer_is_that_of_the_paper_with_every_gradient(
        self, dtype: torch.dtype, kernel: str, lines: Lines
    ) -> None:
        layer = grove_layer_of(dtype, kernel)
        assert layer.in_one_pass is (kernel != "megatron")
        x, upstream = tokens(TOKENS, layer.config.hidden_size, dtype)
        assert_close(run(layer, x, upstream), by_the_paper(layer, x, upstream), TOLERANCE[dtype])
        assert lines() == []

    @pytest.mark.parametrize("experts_per_group", [1, 4, 16])
    @pytest.mark.parametrize("kernel", ["triton", "grouped"])
    def test_groups_of_any_size(self, kernel: str, experts_per_group: int) -> None:
        groups = SMALL["num_moe_experts"] // experts_per_group
        settings = {"grove_num_groups": groups, "grove_allow_scale_above_bound": True}
        layer = grove_layer_of(torch.bfloat16, kernel, **settings)
        x, upstream = tokens(TOKENS, layer.config.hidden_size, torch.bfloat16)
        expected = by_the_paper(layer, x, upstream)
        assert_close(run(layer, x, upstream), expected, TOLERANCE[torch.bfloat16])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("other", ["grouped", "megatron"])
    def test_all_agree_at_the_size_of_the_released_model(
        self, other: str, dtype: torch.dtype
    ) -> None:
        layer, theirs = (grove_layer_of(dtype, kernel, **GROVE_33B) for kernel in ("triton", other))
        load(theirs, weights(layer))
        x, upstream = tokens(4096, layer.config.hidden_size, dtype)
        assert_close(run(layer, x, upstream), run(theirs, x, upstream), TOLERANCE[dtype])


@pytest.mark.usefixtures("triton")
class TestFallbacks:
    """What Triton's kernels do not take is computed all the same, and one line says why."""

    def line(self, why: str) -> list[str]:
        return [f"grove_megatron: torch kernels instead of Triton's: {why}"]

    def test_fp64(self, lines: Lines) -> None:
        layer = grove_layer_of(torch.float64, moe_router_dtype="fp64")
        x, upstream = tokens(TOKENS, layer.config.hidden_size, torch.float64)
        for _ in range(2):
            assert_close(
                run(layer, x, upstream), by_the_paper(layer, x, upstream), TOLERANCE[torch.float64]
            )
        assert lines() == self.line("dtype (float64) is not one of bfloat16, float16, float32")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(
        ("name", "width"),
        [
            ("hidden_size", 60),
            ("moe_ffn_hidden_size", 20),
            ("grove_adjugate_ffn_hidden_size", 10),
        ],
    )
    def test_a_width_that_is_not_a_multiple_of_8(
        self, name: str, width: int, dtype: torch.dtype, lines: Lines
    ) -> None:
        layer = grove_layer_of(dtype, **{name: width})
        x, upstream = tokens(TOKENS, layer.config.hidden_size, dtype)
        for _ in range(2):
            expected = by_the_paper(layer, x, upstream)
            assert_close(run(layer, x, upstream), expected, TOLERANCE[dtype])
        assert lines() == self.line(f"{name} ({width}) is not a multiple of 8")

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_no_tokens(self, kernel: str, lines: Lines) -> None:
        dtype = torch.bfloat16
        layer = grove_layer_of(dtype, kernel)
        hidden, experts = layer.config.hidden_size, layer.config.num_moe_experts
        probs = torch.zeros(0, experts, device="cuda")
        for _ in range(2):
            found = run_routed(layer, *tokens(0, hidden, dtype), probs, probs.bool())
            assert found["y"].shape == found["x"].shape == (0, 1, hidden)
            # Every weight has a gradient all the same: data parallelism waits for it.
            assert not any(tensor.any() for tensor in found.values())
        silent = kernel in ("grouped", "megatron")
        assert lines() == ([] if silent else self.line("no rows to work on"))
        # The next batch is computed as ever.
        x, upstream = tokens(TOKENS, hidden, dtype)
        assert_close(run(layer, x, upstream), by_the_paper(layer, x, upstream), TOLERANCE[dtype])

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_tokens_without_an_expert(self, kernel: str, lines: Lines) -> None:
        layer = grove_layer_of(torch.bfloat16, kernel)
        hidden, experts = layer.config.hidden_size, layer.config.num_moe_experts
        probs = torch.zeros(TOKENS, experts, device="cuda")
        found = run_routed(layer, *tokens(TOKENS, hidden, torch.bfloat16), probs, probs.bool())
        assert found["y"].shape == (TOKENS, 1, hidden)
        assert not any(tensor.any() for tensor in found.values())

    @pytest.mark.parametrize(
        ("dtype", "settings", "why"),
        [
            (torch.float64, {}, "dtype (float64) is not one of bfloat16, float16, float32"),
            (torch.bfloat16, {"hidden_size": 60}, "hidden_size (60) is not a multiple of 8"),
        ],
        ids=["fp64", "hidden size"],
    )
    def test_kernels_asked_for_by_name_have_to_run(
        self, dtype: torch.dtype, settings: dict[str, Any], why: str, lines: Lines
    ) -> None:
        layer = grove_layer_of(dtype, "triton", **settings)
        x, _ = tokens(TOKENS, layer.config.hidden_size, dtype)
        message = re.escape(f"--grove-kernel (triton) cannot run: {why}; use auto")
        with pytest.raises(ValueError, match=rf"^{message}$"):
            layer(x)
        assert lines() == []


WAITED = "called a synchronizing CUDA operation"


@contextmanager
def waits() -> Iterator[list[str]]:
    """How often the host waits for the device inside: a line each, of where."""
    found: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
        found += [f"{w.filename}:{w.lineno}" for w in caught if WAITED in str(w.message)]


def test_waiting_is_seen() -> None:
    x = torch.ones(3, device="cuda", requires_grad=True)
    with waits() as found:
        y = x * 2
    assert found == []
    with waits() as found:
        y.sum().item()
        y.detach().cpu()
    assert len(found) == 2

    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0] * grads[0].max().item()

    y = Waits.apply(x).sum()
    with waits() as found:
        y.backward()
    assert len(found) == 1, "of the thread that runs the backward pass too"


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_host_waits_once_for_the_counts_and_never_again(dtype: torch.dtype) -> None:
    """One forward and one backward pass of all stages between the router and the output."""
    layer = grove_layer_of(dtype)
    x, upstream = tokens(TOKENS, layer.config.hidden_size, dtype)
    for _ in range(2):
        # The first pass times tiles and waits for them.
        run(layer, x, upstream)
    x.requires_grad_()
    with torch.no_grad():
        probs, chosen = layer.route(x)
    probs.requires_grad_()
    counts = LayerCounts(layer.token_dispatcher, layer.config.moe_router_topk)
    padding = torch.arange(chosen.shape[0], device="cuda") % 3 == 0
    torch.cuda.synchronize()

    stages: dict[str, list[str]] = {}
    with waits() as stages["counting"]:
        counts.add(chosen, None)
        counts.add(chosen, padding)
    with waits() as stages["preprocess"]:
        rows, packed = layer.preprocess(x, probs, chosen)
    with waits() as stages["dispatch"]:
        received, packed = layer.dispatch(rows, packed)
    with waits() as stages["experts"]:
        output, _ = layer.routed_experts_compute(received, packed)
    with waits() as stages["combine"]:
        y = layer.postprocess(layer.combine(output), None)
    with waits() as stages["backward"]:
        y.backward(upstream)
    assert x.grad is not None
    assert probs.grad is not None
    assert {stage: len(found) for stage, found in stages.items()} == {
        "counting": 0,
        "preprocess": 1,
        "dispatch": 0,
        "experts": 0,
        "combine": 0,
        "backward": 0,
    }, stages
    assert "comm/counts.py" in stages["preprocess"][0]


@pytest.mark.parametrize("case", ["some", "none"])
def test_the_plan_of_what_is_sent_to_four_ranks_waits_for_nothing_and_is_that_of_the_cpu(
    case: str,
) -> None:
    """What a job of several ranks computes around its exchanges, without the exchanges."""
    number, experts, ranks, groups = 33, 16, 4, 8
    generator = torch.Generator().manual_seed(5)
    chosen = torch.rand(number, experts, generator=generator) < (0.2 if case == "some" else 0.0)
    probs = torch.rand(number, experts, generator=generator)
    x = torch.randn(number, 24, generator=generator)
    work = dispatch_plan.count_work(chosen, ranks, groups)
    rows_R = work[:, 0]
    pairs_R = work[:, 1 : 1 + experts // ranks].sum(1)
    sizes = int(rows_R.sum()), int(pairs_R.sum())

    def around_the_exchanges(*inputs: Tensor) -> list[Tensor]:
        chosen, probs, x, rows_R, pairs_R = inputs
        plan = dispatch_plan.plan_send(chosen, ranks, *sizes)
        values = dispatch_plan.send_values(probs, plan)
        packed = dispatch_plan.receive_probs(
            values, plan.code_P, rows_R, pairs_R, sizes[0], experts // ranks
        )
        rows = expand_rows(x, plan.rows, TORCH)
        y = reduce_rows(rows, plan.rows, TORCH)
        grads = torch.autograd.grad(
            [y.square().sum(), packed.masked_fill(packed == dispatch_plan.NOT_ROUTED, 0).sum()],
            [x, probs],
        )
        counted = dispatch_plan.count_work(chosen, ranks, groups)
        indices = [*vars(plan.rows).values(), plan.pair_P, plan.code_P]
        return [*indices, values, packed, rows, y, counted, *grads]

    probs.requires_grad_()
    x.requires_grad_()
    there = (chosen, probs, x, rows_R, pairs_R)
    here = [t.detach().cuda().requires_grad_(t.requires_grad) for t in there]
    around_the_exchanges(*here)
    with waits() as found:
        ours = around_the_exchanges(*here)
    assert found == []
    for mine, theirs in zip(ours, around_the_exchanges(*there), strict=True):
        assert mine.device.type == "cuda"
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-6, atol=1e-6)
