"""Bytes alive, on allocation patterns that are known."""

import torch

from grove_megatron.benchmarks.memory import LiveBytes, peak_bytes

KB = 256  # floats


def test_the_peak_is_what_was_alive_at_one_time() -> None:
    with LiveBytes() as live:
        a = torch.zeros(4 * KB)
        b = a + 1
        assert live.now == 8 * 1024
        del a
        assert live.now == 4 * 1024
        c = b * 2
        del b
    assert live.now == 4 * 1024
    assert live.peak == 8 * 1024
    del c
    assert live.now == 0


def test_what_was_there_before_is_not_counted() -> None:
    before = torch.zeros(64 * KB)
    with LiveBytes() as live:
        before.add_(1)
        view = before.view(8, -1)[2:4].t()
        assert view.shape == (8 * KB, 2)
        assert live.peak == 0
        copied = view.contiguous()
    assert live.peak == copied.numel() * 4 == 16 * 1024


def test_views_and_results_in_place_are_counted_once() -> None:
    with LiveBytes() as live:
        x = torch.zeros(KB)
        y = x.view(2, -1)
        y.mul_(2)
        parts = x.split(KB // 4)
        out = torch.add(x, x, out=x)
    assert live.peak == 1024
    del x, y, out
    assert live.now == 1024, "the parts keep it alive"
    del parts
    assert live.now == 0


def test_a_storage_at_the_address_of_a_freed_one_is_new() -> None:
    with LiveBytes() as live:
        for _ in range(20):
            torch.zeros(KB)
        assert (live.now, live.peak) == (0, 1024)
        kept = [torch.zeros(KB) for _ in range(3)]
        assert live.now == live.peak == len(kept) * 1024


def test_activations_that_autograd_saves_and_gradients_are_seen() -> None:
    weight = torch.ones(KB, requires_grad=True)

    def forward_and_backward() -> None:
        # exp saves its output, 1 KB; the gradient of the weight is as large.
        (weight * 2).exp().sum().backward()

    assert peak_bytes(forward_and_backward, on_cuda=False) >= 2 * 1024
    assert weight.grad is not None
    weight.grad = None
    with LiveBytes() as live:
        forward_and_backward()
    assert live.now == 1024, "only the gradient is left"


def test_a_storage_that_is_emptied_counts_as_it_is_then():
    with LiveBytes() as live:
        x = torch.ones(100)
        x.untyped_storage().resize_(0)
        assert live.now == 0
        y = torch.ones(50)
        x.untyped_storage().resize_(80)
        assert live.now == 280
        del x, y
    assert (live.now, live.peak) == (0, 400)
    # Nothing is counted afterwards.
    torch.ones(1).untyped_storage().resize_(0)
    assert live.now == 0
