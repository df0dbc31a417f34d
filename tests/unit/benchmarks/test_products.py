"""The products alone are those that a layer has to compute."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from grove_megatron.benchmarks.products import products
from grove_megatron.benchmarks.shape import Shape
from grove_megatron.benchmarks.work import Work

ROWS = [3, 0, 5, 1]


def test_six_for_every_expert_and_as_many_operations_as_are_counted() -> None:
    run = products(ROWS, hidden=6, width=4, like=torch.empty(0))
    with FlopCounterMode(display=False) as counted:
        run()
    shape = Shape(tokens=9, hidden=6, experts=4, groups=2, expert_width=4, adjugate_width=1)
    expected = Work(tokens=9, pairs=sum(ROWS), adjugate_pairs=0).expert_flops(shape, 0)
    assert counted.get_total_flops() == expected


def test_of_the_layers_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    monkeypatch.setattr(torch, "mm", lambda *factors, out: seen.update(t.dtype for t in factors))
    products(ROWS, hidden=6, width=4, like=torch.empty(0, dtype=torch.bfloat16))()
    assert seen == {torch.bfloat16}
