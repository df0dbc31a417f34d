"""Peaks against a walk that frees tensor by tensor."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grove_megatron.planner.peak.steps import PARTS, Block, Step, block, chain, recomputed

STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(PARTS),
        st.integers(0, 50).map(float),
        st.integers(0, 50).map(float),
        live_of=st.none(),
    ),
    min_size=1,
    max_size=8,
)


def walked(steps: list[Step]) -> float:
    """The most bytes of a backward pass."""
    held, most = sum(step.kept for step in steps), 0.0
    for step in reversed(steps):
        most = max(most, held + step.live)
        held -= step.kept
    return most


def check_parts(found: Block) -> None:
    assert sum(found.kept_of.values()) == pytest.approx(found.kept)
    assert sum(found.extra_of.values()) == pytest.approx(found.extra)
    for part in found.extra_of:
        # Nothing is freed that was not kept.
        assert found.kept_of.get(part, 0.0) + found.extra_of[part] >= 0


@given(steps=STEPS)
def test_a_block_peaks_where_a_walk_does(steps):
    found = block(steps)
    assert found.kept + found.extra == pytest.approx(walked(steps))
    check_parts(found)


@given(first=STEPS, times=st.integers(1, 3), second=STEPS)
def test_a_chain_of_blocks_peaks_where_all_their_steps_do(first, times, second):
    found = chain([(block(first), times), (block(second), 1)])
    assert found.kept + found.extra == pytest.approx(walked([*first * times, *second]))
    check_parts(found)


@given(before=STEPS, steps=STEPS, after=STEPS)
def test_what_is_recomputed_is_there_again_for_its_gradients_alone(before, steps, after):
    again = recomputed("other", steps, kept_input=3.0, held=5.0)
    found = block([*before, *again, *after])
    assert found.kept == pytest.approx(block(before).kept + 3.0 + block(after).kept)
    check_parts(found)
    peak = max(
        walked(before),
        block(before).kept + 3.0 + 5.0 + walked(steps),
        block(before).kept + 3.0 + walked(after),
    )
    assert found.kept + found.extra == pytest.approx(peak)


def test_nothing_is_nothing():
    assert chain([]) == Block(0.0, {}, 0.0, {})
