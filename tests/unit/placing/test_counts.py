"""What is counted of tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grove_megatron.moe.counts import together
from grove_megatron.placing.counts import of_tokens, summed
from tests.unit.placing.routings import uniform


@given(st.integers(0, 10**6), st.sampled_from([(8, 0), (8, 4), (12, 3)]), st.integers(0, 3))
def test_counts_are_those_of_single_tokens(seed: int, sizes: tuple[int, int], left: int) -> None:
    experts, groups = sizes
    chosen_TK = uniform(9, experts, 4, seed)
    chosen_TK[:, 4 - left :] = -1
    counts = of_tokens(chosen_TK, experts, groups)
    units, size = groups or experts, experts // (groups or experts)
    together_UU, load, degrees = np.zeros((units, units)), np.zeros(units), np.zeros(5)
    for chosen in chosen_TK.tolist():
        met = {e // size for e in chosen if e >= 0}
        degrees[len(met)] += 1
        for e in chosen:
            load[e // size] += e >= 0
        for a in met:
            for b in met:
                together_UU[a, b] += 1
    assert np.array_equal(counts.together, together_UU)
    assert np.array_equal(counts.load, load)
    assert counts.degrees.tolist() == degrees[: len(counts.degrees)].tolist()
    assert not degrees[len(counts.degrees) :].any()
    assert counts.tokens == 9


def test_what_a_layer_counts_is_the_same() -> None:
    counts = of_tokens(uniform(500, 16, 4, 0), 16, 8)
    assert np.array_equal(together(torch.from_numpy(counts.met)).numpy(), counts.together)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_a_layer_counts_exactly_where_products_are_rounded(precision: str) -> None:
    """Under autocast, and with products that may be bf16 inside, whose integers end at 256."""
    before = torch.get_float32_matmul_precision()
    met_TU = torch.ones(1001, 3, dtype=torch.bool)
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            counted = together(met_TU)
    finally:
        torch.set_float32_matmul_precision(before)
    assert counted.dtype == torch.int64
    assert counted.tolist() == [[1001] * 3] * 3


def test_parts_add_up() -> None:
    whole = uniform(90, 8, 2, 0)
    parts = [of_tokens(piece, 8, 4) for piece in np.array_split(whole, 4)]
    added, at_once = summed(parts), of_tokens(whole, 8, 4)
    for name in ("together", "load", "degrees", "met"):
        assert np.array_equal(getattr(added, name), getattr(at_once, name)), name
