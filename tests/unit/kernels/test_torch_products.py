import re
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from grove_megatron.kernels.torch_owners import group_end
from grove_megatron.kernels.torch_products import (
    fan_in,
    fan_out,
    fan_weights,
    grouped_why_not,
    owner_slices,
)
from tests.unit.functional.pairs import SELECTIONS, pairs_of, selection


def found_slices(selected: list[list[int]], groups: int) -> list[tuple[int, range, range]]:
    """(group, rows, owners) of every slice."""
    pairs = pairs_of(torch.tensor(selected, dtype=torch.bool), groups)
    return [
        (group, range(rows.start, rows.stop), range(owners.start, owners.stop))
        for group, rows, owners in owner_slices(pairs.segments)
    ]


class TestOwnerSlices:
    @pytest.mark.parametrize("kind", SELECTIONS)
    @pytest.mark.parametrize("per_group", [1, 2, 4, 8])
    @pytest.mark.parametrize("seed", range(4))
    def test_they_cover_exactly_the_owners_of_every_group_in_order(self, kind, per_group, seed):
        pairs = pairs_of(selection(kind, 8, seed=seed), 8 // per_group)
        slices = list(owner_slices(pairs.segments))
        covered = [
            (group, n, m)
            for group, rows, owners in slices
            for n, m in zip(
                range(rows.start, rows.stop), range(owners.start, owners.stop), strict=True
            )
        ]
        expected = zip(pairs.group_M, pairs.owner_M, range(len(pairs.owner_M)), strict=True)
        assert covered == list(expected)
        assert all(rows.stop > rows.start for _, rows, _ in slices)

    @pytest.mark.parametrize("kind", SELECTIONS)
    @pytest.mark.parametrize("per_group", [1, 2, 4, 8])
    @pytest.mark.parametrize("seed", range(4))
    def test_there_are_as_few_of_them_as_the_owners_lie_in(self, kind, per_group, seed):
        pairs = pairs_of(selection(kind, 8, seed=seed), 8 // per_group)
        runs, before = [], None
        for group, n in zip(pairs.group_M, pairs.owner_M, strict=True):
            if before != (group, n - 1):
                runs.append((group, n))
            before = (group, n)
        assert [(g, rows.start) for g, rows, _ in owner_slices(pairs.segments)] == runs

    def test_with_two_experts_a_group_one_slice_holds_both_owners(self):
        # e0 owns rows 0 and 1 and has no others; e1 owns row 2, and row 0 is not its own.
        assert found_slices([[1, 1], [1, 0], [0, 1]], 1) == [(0, range(3), range(3))]

    def test_another_row_between_two_owners_makes_two_slices(self):
        # e0 owns row 0, e1 owns 1, and row 0 lies before e2's owner, row 2.
        selected = [[1, 1, 1], [0, 1, 0], [0, 0, 1]]
        assert found_slices(selected, 1) == [(0, range(2), range(2)), (0, range(3, 4), range(2, 3))]

    def test_a_group_without_owners_has_none_and_groups_are_never_joined(self):
        selected = [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1]]
        assert found_slices(selected, 3) == [
            (0, range(2), range(2)),
            (2, range(2, 4), range(2, 4)),
        ]

    def test_an_empty_expert_between_two_owners_does_not_part_them(self):
        assert found_slices([[1, 0, 0], [0, 0, 1]], 1) == [(0, range(2), range(2))]


class TestGroupedWhyNot:
    @pytest.mark.parametrize(
        ("dtype", "widths"),
        [(torch.float32, (4, 12)), (torch.bfloat16, (8, 768)), (torch.float16, (16,))],
    )
    def test_rows_of_a_multiple_of_16_bytes_are_taken(self, dtype, widths):
        assert grouped_why_not(dtype, *widths) is None

    @pytest.mark.parametrize(
        ("dtype", "widths", "message"),
        [
            (torch.float32, (8, 6), "width (6) is not a multiple of 4, 16 bytes of torch.float32"),
            (torch.bfloat16, (4,), "width (4) is not a multiple of 8, 16 bytes of torch.bfloat16"),
            (torch.float16, (16, 12), "width (12) is not a multiple of 8, 16 bytes of"),
            (
                torch.float64,
                (8,),
                "dtype (torch.float64) is not one of torch.float32, torch.bfloat16, torch.float16",
            ),
        ],
    )
    def test_others_are_named(self, dtype, widths, message):
        assert re.match(re.escape(message), grouped_why_not(dtype, *widths))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_what_is_taken_runs(self, dtype):
        width = 16 // dtype.itemsize
        x, weight = torch.ones(3, width, dtype=dtype), torch.ones(2, width, width, dtype=dtype)
        y = F.grouped_mm(x, weight, offs=torch.tensor([1, 3], dtype=torch.int32))
        assert y.tolist() == [[width] * width] * 3


@pytest.fixture
def grouped_calls(monkeypatch):
    """Counts the calls of torch's grouped product."""
    calls = []
    original = F.grouped_mm

    def counted(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "grouped_mm", counted)
    return calls


@pytest.mark.parametrize(
    ("dtype", "hidden", "width", "times"),
    [
        (torch.float32, 8, 4, 1),
        (torch.bfloat16, 16, 8, 1),
        (torch.float32, 6, 4, 0),
        (torch.float32, 8, 6, 0),
        (torch.bfloat16, 12, 8, 0),
        (torch.float64, 8, 4, 0),
    ],
)
def test_the_wide_products_are_torch_s_grouped_ones_where_the_shapes_fit(
    dtype, hidden, width, times, grouped_calls
):
    pairs = pairs_of(selection("some", 4), 2)
    x = torch.ones(len(pairs.expert_N), hidden, dtype=dtype)
    wide = torch.ones(4, width, hidden, dtype=dtype)
    narrow = torch.ones(2, 2, hidden, dtype=dtype)
    p, q = fan_out(x, wide, narrow, pairs.segments)
    assert len(grouped_calls) == times
    fan_in(p, q, wide, narrow, pairs.segments)
    assert len(grouped_calls) == 2 * times
    for transposed in (False, True):
        fan_weights(p, q, x, pairs.segments, transposed)
    assert len(grouped_calls) == 4 * times


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("hidden", "width", "adjugate"), [(8, 4, 4), (5, 3, 2)])
def test_products_with_weights_are_each_other_s_transpose(hidden, width, adjugate, transposed):
    """<p, W x> = <Wt p, x> = <dW, W>, wide and narrow together."""
    pairs = pairs_of(selection("some", 8), 2)
    g = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    x, p = random(len(pairs.expert_N), hidden), random(len(pairs.expert_N), width)
    q = random(len(pairs.owner_M), adjugate)
    wide, narrow = random(8, width, hidden), random(2, adjugate, hidden)
    out_p, out_q = fan_out(x, wide, narrow, pairs.segments)
    expected = (out_p * p).sum() + (out_q * q).sum()
    back = fan_in(p, q, wide, narrow, pairs.segments)
    torch.testing.assert_close((back * x).sum(), expected)
    dwide, dnarrow = fan_weights(p, q, x, pairs.segments, transposed)
    if transposed:
        dwide, dnarrow = dwide.mT, dnarrow.mT
    torch.testing.assert_close((dwide * wide).sum() + (dnarrow * narrow).sum(), expected)


@pytest.mark.parametrize(
    ("experts_per_group", "expected"), [(1, [1, 3, 6, 10]), (2, [3, 10]), (4, [10])]
)
def test_the_ends_of_groups_have_the_stride_that_torch_demands(experts_per_group, expected):
    owner_end = torch.tensor([1, 3, 6, 10], dtype=torch.int32)
    segments = SimpleNamespace(owner_end=owner_end, experts_per_group=experts_per_group)
    ends = group_end(segments)
    assert ends.tolist() == expected
    assert ends.stride() == (1,)
