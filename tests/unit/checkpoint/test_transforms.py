"""Each transform beside slices written out here; what it joins, it takes apart again."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grove_megatron.checkpoint.transforms import (
    GateUp,
    QueryKeyValue,
    Replicated,
    Shape,
    Split,
    TensorParallel,
    Transform,
)

WHOLE = TensorParallel(0, 1)
Case = tuple[Transform, list[Shape]]


@st.composite
def cases(draw: Any) -> Case:
    """A transform with shapes of tensors it takes; 4 divides what is split."""
    hidden, width = draw(st.integers(1, 5)), 4 * draw(st.integers(1, 3))
    groups, queries, head_dim = 4 * draw(st.integers(1, 2)), draw(st.integers(1, 3)), 2
    found: Case = draw(
        st.sampled_from(
            [
                (Replicated(), [(width,)]),
                (Replicated(), [(hidden, width)]),
                (Split(0), [(width, hidden)]),
                (Split(1), [(hidden, width)]),
                (GateUp(), [(width, hidden), (width, hidden)]),
                (
                    QueryKeyValue(groups),
                    [
                        (groups * queries * head_dim, hidden),
                        (groups * head_dim, hidden),
                        (groups * head_dim, hidden),
                    ],
                ),
            ]
        )
    )
    return found


def together(shapes: Sequence[Shape]) -> Shape:
    """Of tensors whose rows are one tensor's."""
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def numbered(shapes: Sequence[Shape], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Tensors of which no two entries are equal."""
    sizes = [prod(shape) for shape in shapes]
    flat = torch.arange(sum(sizes)).split(sizes)
    return [part.reshape(shape).to(dtype) for part, shape in zip(flat, shapes, strict=True)]


@given(case=cases(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
def test_split_gives_back_what_was_joined(case: Case, dtype: torch.dtype) -> None:
    transform, shapes = case
    tensors = numbered(shapes, dtype)
    again = transform.split(transform.local(tensors, WHOLE), shapes)
    assert [t.dtype for t in again] == [dtype] * len(shapes)
    assert all(map(torch.equal, again, tensors))


@given(case=cases())
def test_join_gives_back_what_was_split(case: Case) -> None:
    transform, shapes = case
    (whole,) = numbered([together(shapes)])
    parts = transform.split(whole, shapes)
    assert [tuple(part.shape) for part in parts] == shapes
    assert torch.equal(transform.local(parts, WHOLE), whole)


@given(case=cases())
def test_chunks_put_together_are_the_whole_tensor(case: Case) -> None:
    transform, shapes = case
    tensors = numbered(shapes)
    whole = transform.local(tensors, WHOLE)
    assert tuple(whole.shape) == together(shapes)
    at = 0
    for row, rows in transform.chunks(tensors):
        assert row == at
        assert torch.equal(whole[row : row + len(rows)], rows)
        at += len(rows)
    assert at == len(whole)


@given(case=cases(), size=st.sampled_from([2, 4]))
def test_the_ranks_have_all_entries_once(case: Case, size: int) -> None:
    transform, shapes = case
    tensors = numbered(shapes)
    parts = [transform.local(tensors, TensorParallel(rank, size)) for rank in range(size)]
    if isinstance(transform, Replicated):
        assert all(torch.equal(part, tensors[0]) for part in parts)
        return
    entries = torch.cat([part.flatten() for part in parts]).sort().values
    assert torch.equal(entries, torch.cat([t.flatten() for t in tensors]))
    assert len({part.shape for part in parts}) == 1


# ------------------------------------------------------------------------- slices, written out


def rows(tensor: Tensor, rank: int, size: int) -> Tensor:
    part = len(tensor) // size
    return tensor[rank * part : (rank + 1) * part]


def columns(tensor: Tensor, rank: int, size: int) -> Tensor:
    return rows(tensor.T, rank, size).T


def gate_up(gate: Tensor, up: Tensor, rank: int, size: int) -> Tensor:
    return torch.cat([rows(gate, rank, size), rows(up, rank, size)])


def query_key_value(q: Tensor, k: Tensor, v: Tensor, rank: int, size: int) -> Tensor:
    """4 groups of 3 queries, heads of 2: per group its queries, its key, its value."""
    groups = [
        torch.cat([q[6 * g : 6 * g + 6], k[2 * g : 2 * g + 2], v[2 * g : 2 * g + 2]])
        for g in range(4)
    ]
    return rows(torch.cat(groups), rank, size)


SLICES: dict[str, tuple[Transform, list[Shape], Callable[..., Tensor]]] = {
    "replicated": (Replicated(), [(6,)], lambda t, rank, size: t),
    "rows": (Split(0), [(8, 3)], rows),
    "columns": (Split(1), [(3, 8)], columns),
    "gate-up": (GateUp(), [(8, 3), (8, 3)], gate_up),
    "query-key-value": (QueryKeyValue(4), [(24, 5), (8, 5), (8, 5)], query_key_value),
}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", SLICES)
def test_a_rank_has_its_slice(name: str, size: int) -> None:
    transform, shapes, expected = SLICES[name]
    tensors = numbered(shapes)
    for rank in range(size):
        local = transform.local(tensors, TensorParallel(rank, size))
        assert torch.equal(local, expected(*tensors, rank, size))


def test_a_group_is_cut_where_there_are_fewer_groups_than_ranks() -> None:
    q, k, v = numbered([(4, 3), (2, 3), (2, 3)])
    transform = QueryKeyValue(1)
    parts = [transform.local([q, k, v], TensorParallel(rank, 2)) for rank in range(2)]
    assert torch.equal(parts[0], q)
    assert torch.equal(parts[1], torch.cat([k, v]))


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tensor dimension \(6\) is not a multiple of .* \(4\)"):
        Split(0).local(numbered([(6, 2)]), TensorParallel(0, 4))
