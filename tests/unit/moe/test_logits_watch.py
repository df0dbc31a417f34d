"""A router's memory of logits that are not finite."""

import pytest
import torch

from grove_megatron.moe.logits_watch import PASSES, LogitsWatch, NotFinite


def logits(*bad: float) -> torch.Tensor:
    """[2, 3, 4] with the ``bad`` values in different tokens."""
    values = torch.full((24,), 3e38)  # finite, and the sum of two is not
    for index, value in enumerate(bad):
        values[4 * index] = value
    return values.reshape(2, 3, 4)


def test_finite_logits_leave_nothing() -> None:
    watch = LogitsWatch(lambda: 1)
    assert watch.first() is None
    watch.see(logits())
    assert watch.first() is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_first_bad_pass_is_remembered(bad: float, dtype: torch.dtype) -> None:
    iteration = 0
    watch = LogitsWatch(lambda: iteration)
    for iteration, values in enumerate([(), (bad, bad), (bad,), ()], start=5):  # noqa: B007
        watch.see(logits(*values).to(dtype))
    assert watch.first() == NotFinite(iteration=6, values=2, tokens=6, experts=4)


def test_all_of_a_pass_are_counted() -> None:
    watch = LogitsWatch(lambda: 1)
    watch.see(torch.full((70, 5), float("nan")))
    assert watch.first() == NotFinite(iteration=1, values=350, tokens=70, experts=5)


def test_the_ring_forgets_the_oldest() -> None:
    iteration = 0
    watch = LogitsWatch(lambda: iteration)
    bad = torch.tensor([[float("nan")]])
    for iteration in range(PASSES + 3):
        watch.see(bad if iteration in (1, 2, 7, PASSES + 1) else torch.zeros(1, 1))
    assert watch.first() == NotFinite(iteration=7, values=1, tokens=1, experts=1)


def test_gradients_and_logits_are_left_alone() -> None:
    given = logits().requires_grad_()
    before = given.detach().clone()
    LogitsWatch(lambda: 1).see(given)
    assert torch.equal(given, before)
    given.sum().backward()
    assert given.grad is not None
    assert given.grad.eq(1).all()


def test_what_was_seen_in_inference_does_not_end_a_training() -> None:
    watch = LogitsWatch(lambda: 1)
    with torch.inference_mode():
        watch.see(logits())
    watch.see(logits(float("nan")))
    assert watch.first() == NotFinite(iteration=1, values=1, tokens=6, experts=4)
