"""Products with concatenated matrices are the same products, both ways of computing them."""

import pytest
import torch

from grove_megatron.benchmarks import concatenated
from tests.unit import triton_cases as loops
from tests.unit.triton_cases import CASES, assert_close


@pytest.mark.parametrize("in_slices", [True, False])
@pytest.mark.parametrize("adjugates", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_they_are_the_same_products(
    name: str, adjugates: bool, in_slices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concatenated, "_in_slices", lambda x: in_slices)
    case = CASES[name]
    torch.manual_seed(0)
    x, p = torch.randn(case.num_pairs, 24), torch.randn(case.num_pairs, 40)
    # As fc1 stores its matrices, and as fc2 does.
    wide = torch.randn(len(case.pairs), 24, 40).mT
    q = torch.randn(case.num_owner_pairs, 8) if adjugates else None
    narrow = torch.randn(case.num_groups, 8, 24) if adjugates else None
    found = [
        *concatenated.fan_out(x, wide, narrow, case),
        concatenated.fan_in(p, q, wide, narrow, case),
        *concatenated.fan_weights(p, q, x, case, False),
        *concatenated.fan_weights(p, q, x, case, True),
    ]
    expected = [
        *loops.fan_out(x, wide, narrow, case),
        loops.fan_in(p, q, wide, narrow, case),
        *loops.fan_weights(p, q, x, case, False),
        *loops.fan_weights(p, q, x, case, True),
    ]
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, torch.float32)
        assert a is None or a.is_contiguous()
