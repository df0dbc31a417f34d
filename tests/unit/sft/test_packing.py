"""Conversations into sequences."""

from hypothesis import given
from hypothesis import strategies as st

from grove_megatron.sft.packing import packs


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 30))
def test_everything_is_somewhere_and_nothing_is_too_full(lengths: list[int], size: int) -> None:
    found = packs(lengths, size)
    assert sorted(i for pack in found for i in pack) == [*range(len(lengths))]
    rooms = [size - sum(min(lengths[i], size) for i in pack) for pack in found]
    assert min(rooms, default=0) >= 0
    # Two that are half empty would have been one.
    assert sum(2 * room >= size for room in rooms) <= 1 + sum(2 * room == size for room in rooms)


def test_each_goes_where_it_leaves_the_least_room() -> None:
    # 4 beside 6 and not beside 5, so that 5 takes the other 5.
    assert packs([4, 5, 6, 5], 10) == [[2, 0], [1, 3]]
    assert packs([7, 6, 3], 10) == [[0, 2], [1]]
    assert packs([25, 3], 10) == [[0], [1]]
    assert packs([], 10) == []
