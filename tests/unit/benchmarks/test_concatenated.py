"""Products with concatenated matrices are the same products, both ways of computing them."""

import pytest
import torch

from grove_megatron.benchmarks import concatenated
from tests.unit.triton_cases import CASES, assert_close, beside_loops


@pytest.mark.parametrize("in_slices", [True, False])
@pytest.mark.parametrize("adjugates", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_they_are_the_same_products(
    name: str, adjugates: bool, in_slices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concatenated, "_in_slices", lambda x: in_slices)
    case = CASES[name]
    torch.manual_seed(0)
    # As fc1 stores its matrices, and as fc2 does.
    wide = torch.randn(len(case.pairs), 24, 40).mT
    for a, b in beside_loops(concatenated, case, wide, adjugates):
        assert_close(a, b, torch.float32)
        assert a is None or a.is_contiguous()
