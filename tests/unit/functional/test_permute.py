from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from grove_megatron.functional.permute import RowMap, expand_rows, reduce_rows
from grove_megatron.kernels import TORCH


def row_map(index: list[int], sources: int) -> RowMap:
    named = torch.tensor(index, dtype=torch.int64)
    return RowMap.of(named, torch.bincount(named, minlength=sources))


@st.composite
def rows_and_copies(draw):
    """Rows [sources, 3], a map that copies some of them, and a generator."""
    sources = draw(st.integers(0, 6))
    index = draw(st.lists(st.integers(0, sources - 1), max_size=9)) if sources else []
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = torch.randn(sources, 3, generator=generator, dtype=torch.float64)
    return x, row_map(index, sources), generator


@given(rows_and_copies())
def test_the_bags_list_the_copies_of_every_source_in_order(case):
    x, rows, _ = case
    bags = rows.bag_index.tensor_split(rows.bag_start[1:-1]) if len(x) else []
    assert rows.bag_start[0] == 0
    assert rows.bag_start[-1] == rows.index.numel()
    for source, bag in enumerate(bags):
        copies = [at for at, named in enumerate(rows.index.tolist()) if named == source]
        assert bag.tolist() == copies


@given(rows_and_copies())
def test_expanded_rows_are_the_named_rows_in_order(case):
    x, rows, _ = case
    expanded = expand_rows(x, rows)
    assert expanded.shape == (rows.index.numel(), 3)
    for position, source in enumerate(rows.index.tolist()):
        assert torch.equal(expanded[position], x[source])


@pytest.mark.parametrize("index", [[0, 1, 2, 3], [0], []])
def test_expanded_rows_never_share_storage_with_the_input(index):
    x = torch.randn(4, 3)
    before = x.clone()
    expand_rows(x, row_map(index, 4)).zero_()
    assert torch.equal(x, before)


@given(rows_and_copies())
def test_reducing_is_the_transpose_of_expanding(case):
    x, rows, generator = case
    y = torch.randn(rows.index.numel(), 3, generator=generator, dtype=torch.float64)
    assert_close((expand_rows(x, rows) * y).sum(), (x * reduce_rows(y, rows)).sum())


@given(rows_and_copies())
def test_each_is_the_gradient_of_the_other(case):
    x, rows, generator = case
    y = torch.randn(rows.index.numel(), 3, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    y.requires_grad_()
    (grad_x,) = torch.autograd.grad(expand_rows(x, rows), x, y.detach())
    assert torch.equal(grad_x, reduce_rows(y, rows).detach())
    (grad_y,) = torch.autograd.grad(reduce_rows(y, rows), y, x.detach())
    assert torch.equal(grad_y, expand_rows(x, rows).detach())


def test_copies_are_summed_to_their_source_and_a_source_without_copies_gets_zero():
    y = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    assert reduce_rows(y, row_map([2, 0, 2, 2], 4)).tolist() == [[2.0], [0.0], [13.0], [0.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_no_copies_and_no_sources_give_zeros_and_nothing(dtype):
    nothing = torch.zeros(0, 3, dtype=dtype, requires_grad=True)
    for sources in (0, 2):
        rows = row_map([], sources)
        x = torch.ones(sources, 3, dtype=dtype, requires_grad=True)
        reduced, expanded = reduce_rows(nothing, rows), expand_rows(x, rows)
        assert torch.equal(reduced, torch.zeros(sources, 3, dtype=dtype))
        assert expanded.shape == (0, 3)
        (grad_y,) = torch.autograd.grad(reduced.sum(), nothing)
        (grad_x,) = torch.autograd.grad(expanded.sum(), x)
        assert grad_y.shape == (0, 3)
        assert torch.equal(grad_x, torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("direction", ["reduce", "gradient of expand"])
def test_sixteen_bit_rows_are_summed_in_fp32(dtype, direction):
    large = 2.0 / torch.finfo(dtype).eps  # adding 1 to it is lost in 16 bits
    y = torch.cat([torch.full((1, 3), large), torch.ones(16, 3)]).to(dtype)
    assert y[0, 0] + y[1, 0] == large
    rows = row_map([0] * 17, 1)
    if direction == "reduce":
        found = reduce_rows(y, rows)
    else:
        x = torch.zeros(1, 3, dtype=dtype, requires_grad=True)
        (found,) = torch.autograd.grad(expand_rows(x, rows), x, y)
    assert found.tolist() == [[large + 16] * 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_the_rows_is_kept(dtype):
    rows = row_map([1, 0, 1], 2)
    thirds = torch.ones(3, 2, dtype=dtype) / 3
    assert expand_rows(thirds[:2], rows).dtype == dtype
    reduced = reduce_rows(thirds, rows)
    assert reduced.dtype == dtype
    assert torch.equal(reduced, torch.stack([thirds[0], 2 * thirds[0]]))


def many_rows(hidden: int, dtype: torch.dtype) -> tuple[torch.Tensor, RowMap]:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 20, (400,), generator=generator)
    y = torch.randn(400, hidden, generator=generator).to(dtype)
    return y, RowMap.of(index, torch.bincount(index, minlength=20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", [3, 64])
def test_a_sum_has_the_bits_of_walking_its_bag(dtype, hidden):
    y, rows = many_rows(hidden, dtype)
    walked = torch.zeros(20, hidden, dtype=dtype)
    for row, source in zip(y, rows.index.tolist(), strict=True):
        walked[source] += row
    assert torch.equal(reduce_rows(y, rows), walked)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", [3, 64])
def test_a_sum_has_the_same_bits_on_every_run_and_any_number_of_threads(dtype, hidden):
    y, rows = many_rows(hidden, dtype)
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            runs.append(reduce_rows(y, rows))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(run, runs[0]) for run in runs)


@pytest.mark.parametrize("function", [expand_rows, reduce_rows])
def test_both_directions_use_the_kernels_they_are_given_on_contiguous_rows(function):
    used = []

    def recorded(name):
        def call(rows, *where):
            used.append((name, rows.is_contiguous()))
            return getattr(TORCH, name)(rows, *where)

        return call

    kernels = replace(TORCH, take_rows=recorded("take_rows"), sum_rows=recorded("sum_rows"))
    x = torch.ones(2, 3, requires_grad=True)
    # A sum's gradient is one number seen from everywhere, with strides of 0.
    function(x, row_map([1, 0], 2), kernels).sum().backward()
    there, back = ("take_rows", "sum_rows")[:: 1 if function is expand_rows else -1]
    assert used == [(there, True), (back, True)]
