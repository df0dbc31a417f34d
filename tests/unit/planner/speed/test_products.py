from dataclasses import replace

import pytest

from grove_megatron.planner.speed.cluster import Timed, TimedAttention
from grove_megatron.planner.speed.products import (
    PASSES,
    Attention,
    Product,
    attention_seconds,
    depth,
    passes,
    seconds,
)

from .machines_here import ROUND

WIDE = Product(rows=4096, inner=4096, outer=8192)


@pytest.mark.parametrize(
    ("pass_", "summed"), [("forward", 4096), ("input", 8192), ("weight", 4096)]
)
def test_a_large_product_takes_its_flops(pass_, summed):
    expected = 2 * 4096 * 4096 * 8192 / (ROUND.achieved * depth(summed))
    assert seconds(ROUND, WIDE, pass_) == pytest.approx(expected, rel=1e-12)


def test_a_short_sum_takes_longer_for_each_of_its_flops():
    assert depth(1e9) == pytest.approx(1)
    assert depth(64) < depth(256) == pytest.approx(0.5)


def test_few_rows_take_what_reading_the_weights_takes():
    thin = Product(rows=1, inner=4096, outer=8192)
    read = (4096 * 8192 + 4096 + 8192) * 2
    assert seconds(ROUND, thin, "forward") == pytest.approx(read / ROUND.bandwidth)
    # The gradient is added to a buffer in fp32: read and written.
    added = 4096 * 8192 * 8 + (4096 + 8192) * 2
    assert seconds(ROUND, thin, "weight") == pytest.approx(added / ROUND.bandwidth)


def test_experts_in_one_call_have_a_rate_of_their_own():
    experts = replace(WIDE, groups=8)
    expected = 8 * 2 * 4096 * 4096 * 8192 / (ROUND.grouped * depth(4096))
    assert seconds(ROUND, experts, "forward") == pytest.approx(expected)


def test_eight_bits_are_faster_by_what_was_measured():
    assert seconds(ROUND, WIDE, "forward", "fp8") == seconds(ROUND, WIDE, "forward") / ROUND.faster


def test_backward_is_both_gradients():
    forward, backward = passes(ROUND, WIDE)
    one, *others = (seconds(ROUND, WIDE, pass_) for pass_ in PASSES)
    assert (forward, backward) == (one, sum(others))


def timed(flops: float, rows: int = 4096, groups: int = 1) -> Timed:
    return Timed(pass_="forward", groups=groups, rows=rows, inner=4096, outer=8192, flops=flops)


def test_what_was_measured_of_a_shape_is_taken():
    machine = replace(ROUND, products=(timed(1e14), timed(9e14, rows=8192)))
    assert seconds(machine, WIDE, "forward") == pytest.approx(WIDE.flops / 1e14)
    # Of this pass alone, and of single products.
    assert seconds(machine, WIDE, "input") == seconds(ROUND, WIDE, "input")
    grouped = replace(WIDE, groups=4)
    assert seconds(machine, grouped, "forward") == seconds(ROUND, grouped, "forward")


def test_between_measured_shapes_the_rate_is_between_theirs_and_nearer_to_the_nearer():
    machine = replace(ROUND, products=(timed(1e14), timed(3e14, rows=16384)))
    middle, near = (replace(WIDE, rows=rows) for rows in (8192, 5120))
    assert middle.flops / seconds(machine, middle, "forward") == pytest.approx(2e14)
    assert 1e14 < near.flops / seconds(machine, near, "forward") < 1.2e14


def test_a_shape_far_from_all_that_were_measured_goes_by_the_law():
    machine = replace(ROUND, products=(timed(1e14),))
    far = replace(WIDE, rows=4096 * 32)
    assert seconds(machine, far, "forward") == seconds(ROUND, far, "forward")


def test_no_rows_take_no_time():
    assert seconds(ROUND, replace(WIDE, rows=0), "forward") == 0


CORE = Attention(sequences=2, queries=1024, keys=4096, heads=16, width=256)


def test_attention_counts_all_pairs_twice_forward_and_five_times_backward():
    pairs = 2 * 1024 * 4096 * 16 * 256
    forward, backward = ROUND.attention
    assert attention_seconds(ROUND, CORE, backward=False) == pytest.approx(2 * pairs / forward)
    assert attention_seconds(ROUND, CORE, backward=True) == pytest.approx(5 * pairs / backward)


def test_measured_attention_is_taken_by_length_and_direction():
    rates = {1024: 1e14, 4096: 3e14}
    found = tuple(
        TimedAttention(backward=False, length=length, heads=16, width=256, flops=flops)
        for length, flops in rates.items()
    )
    machine = replace(ROUND, attentions=found)
    taken = attention_seconds(machine, CORE, backward=False)
    assert CORE.flops(backward=False) / taken == pytest.approx(3e14)
    other = attention_seconds(machine, CORE, backward=True)
    assert other == attention_seconds(ROUND, CORE, backward=True)
