"""The strategies to compare the kernels with compute the same."""

import pytest
import torch

from grove_megatron.benchmarks.two_passes import with_two_passes
from grove_megatron.kernels import TORCH
from tests.unit.triton_cases import CASES, assert_close, beside_loops


@pytest.mark.parametrize("second_stream", [False, True])
@pytest.mark.parametrize("adjugates", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_two_passes_are_the_same_products(name: str, adjugates: bool, second_stream: bool) -> None:
    case, kernels = CASES[name], with_two_passes(TORCH, second_stream=second_stream)
    torch.manual_seed(0)
    wide = torch.randn(len(case.pairs), 40, 24)
    for a, b in beside_loops(kernels, case, wide, adjugates):
        assert_close(a, b, torch.float32)


def test_the_rest_is_of_the_base() -> None:
    names = {with_two_passes(TORCH, second_stream=s).name for s in (False, True)}
    assert names == {"separate", "two_streams"}
    assert with_two_passes(TORCH, second_stream=True).sum_rows is TORCH.sum_rows
