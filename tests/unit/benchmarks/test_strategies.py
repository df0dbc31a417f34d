"""Which strategies are compared, and why others are not."""

from dataclasses import fields
from typing import Any

import pytest
import torch

from grove_megatron.benchmarks.strategies import STRATEGIES, choose
from grove_megatron.kernels import TORCH, Kernels

PRODUCTS = {"fan_out", "fan_in", "fan_weights"}
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def strategies(
    dtype: torch.dtype = torch.float32, device: torch.device = CPU, **widths: int
) -> Any:
    sizes = {"hidden": 64, "expert_width": 32, "adjugate_width": 16} | widths
    return choose(dtype, device, num_pairs=5, **sizes)


def test_on_a_cpu_three_run_and_two_say_why_not() -> None:
    found = strategies()
    assert list(found.strategies) == ["owner_rows", "separate", "concatenated"]
    assert found.skipped == {"two_streams": "no CUDA device", "triton": "no CUDA device"}
    assert found.implementations == {"torch": TORCH}


def test_they_differ_in_their_products_alone() -> None:
    found = strategies().strategies
    for name, kernels in found.items():
        assert kernels.name == name
        for field in {f.name for f in fields(Kernels)} - PRODUCTS - {"name"}:
            assert getattr(kernels, field) == getattr(TORCH, field)
    for product in PRODUCTS:
        assert getattr(found["owner_rows"], product) is getattr(TORCH, product)
        assert len({getattr(kernels, product) for kernels in found.values()}) == 3


def test_a_width_that_grouped_products_do_not_take_leaves_what_does_without() -> None:
    found = strategies(expert_width=23)
    assert list(found.strategies) == ["owner_rows", "concatenated"]
    assert "width (23) is not a multiple of 4" in found.skipped["separate"]
    assert found.skipped["triton"] == "expert_width (23) is not a multiple of 8"


def test_on_cuda_all_run_on_the_base_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing is launched: only the choice is made.
    monkeypatch.setattr("grove_megatron.kernels.triton_support._why_not_here", lambda device: None)
    found = strategies(torch.bfloat16, CUDA)
    from grove_megatron.kernels.triton_kernels import TRITON

    assert tuple(found.strategies) == STRATEGIES
    assert found.skipped == {}
    assert {kernels.sum_rows for kernels in found.strategies.values()} == {TRITON.sum_rows}
    assert found.strategies["triton"].fan_out is TRITON.fan_out
    assert found.strategies["owner_rows"].fan_out is TORCH.fan_out
    assert list(found.implementations) == ["torch", "triton"]
    without = strategies(torch.bfloat16, CUDA, expert_width=12)
    assert list(without.strategies) == ["owner_rows"]
    assert without.strategies["owner_rows"].sum_rows is TORCH.sum_rows
