import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from grove_megatron.functional.balance import (
    group_balancing_loss,
    rms_step,
)

# Layers of experts; loads as of a large job.
LOADS = st.integers(1, 4).flatmap(
    lambda layers: st.integers(2, 9).flatmap(
        lambda experts: st.lists(
            st.lists(st.integers(0, 2**35), min_size=experts, max_size=experts),
            min_size=layers,
            max_size=layers,
        )
    )
)


def by_the_paper(counts: list[int], rate: float) -> list[float]:
    """Eq. 7-8 in plain Python."""
    total, experts = sum(counts), len(counts)
    error = [count / total - 1 / experts for count in counts]
    rms = math.sqrt(sum(e * e for e in error) / experts)
    return [-rate * e / rms for e in error]


@given(LOADS, st.floats(1e-6, 1.0))
def test_the_step_is_the_papers(loads, rate):
    step = rms_step(torch.tensor(loads), rate)
    assert step.dtype == torch.float64
    for counts, found in zip(loads, step, strict=True):
        if len(set(counts)) == 1:
            assert (found == 0).all()
        else:
            # Plain Python rounds F - 1/E, whose parts can be 1e10 times the difference.
            error = max(counts) - min(counts)
            tolerance = max(1e-12, 1e-15 * sum(counts) / error)
            assert_close(found.tolist(), by_the_paper(counts, rate), rtol=tolerance, atol=tolerance)
            assert found.square().mean().sqrt().item() == pytest.approx(rate, rel=1e-12)
            assert abs(found.sum().item()) <= 1e-12 * rate


@pytest.mark.parametrize("experts", [3, 7, 128, 384])
@pytest.mark.parametrize("load", [1, 3, 2**40 + 1])
def test_equal_loads_move_nothing_whatever_the_number_of_experts(experts, load):
    # count / total - 1 / experts, in floating point, is not 0 for most of these.
    assert (rms_step(torch.full((1, experts), load), 1e-3) == 0).all()


def test_no_tokens_move_nothing():
    assert (rms_step(torch.zeros(2, 4, dtype=torch.int64), 1e-3) == 0).all()


def test_loads_that_differ_by_less_than_one_in_a_million_millions_are_equal():
    almost, beyond = torch.full((2, 4), 2**40).unbind()
    almost[0] += 1  # RMS 2e-13 of the load of all
    beyond[0] += 100
    step = rms_step(torch.stack([almost, beyond]), 1e-3)
    assert (step[0] == 0).all()
    assert step[1].square().mean().sqrt().item() == pytest.approx(1e-3)


def test_a_layer_does_not_depend_on_the_others():
    loads = torch.tensor([[5, 1, 0], [2, 2, 2], [0, 0, 9]])
    alone = torch.cat([rms_step(layer.unsqueeze(0), 0.1) for layer in loads])
    assert torch.equal(rms_step(loads, 0.1), alone)


def test_an_expert_with_more_than_its_share_is_lowered():
    assert (rms_step(torch.tensor([[4, 2, 0]]), 0.1)[0].sign() == torch.tensor([-1, 0, 1])).all()


def group_loss(scores, touched, tokens, coeff=1.0) -> torch.Tensor:
    return group_balancing_loss(scores, torch.tensor(touched), torch.tensor(tokens), coeff)


def test_the_loss_over_groups_is_its_coefficient_where_groups_are_equal():
    skewed = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.5, 0.2, 0.2, 0.1]])
    assert_close(group_loss(skewed, [5, 5], 2, coeff=0.3), torch.tensor(0.3))
    equal = torch.full((2, 4), 0.25)
    assert_close(group_loss(equal, [9, 1], 2, coeff=0.3), torch.tensor(0.3))


def test_the_loss_over_groups_is_the_number_of_groups_where_one_has_everything():
    one = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0, 0.0]])
    assert_close(group_loss(one, [1, 0, 0], 1), torch.tensor(3.0))


def test_no_tokens_have_no_loss():
    assert group_loss(torch.zeros(0, 4), [0, 0], 0) == 0
    assert group_loss(torch.zeros(3, 4), [0, 0], 0) == 0
