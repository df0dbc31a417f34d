import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grove_megatron.simulate.summary import spread


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=40))
def test_percentiles_are_those_of_torch(numbers: list[int]) -> None:
    of = torch.tensor(numbers)
    found = spread([of])
    assert found.p50 == pytest.approx(float(of.double().quantile(0.5)))
    assert found.p99 == pytest.approx(float(of.double().quantile(0.99)))
    assert found.max == max(numbers)


def test_there_is_no_number_of_values_that_is_too_many() -> None:
    # torch.quantile takes 2^24 of them: 4,096 ranks in as many micro batches.
    found = spread([torch.arange(2**12).repeat(2**12 + 1)])
    assert (found.p50, found.max, found.mean) == (2047.5, 4095, 2047.5)
    assert found.p99 == pytest.approx(0.99 * 4095, abs=1)
