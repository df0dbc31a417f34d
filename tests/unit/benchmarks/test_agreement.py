"""Same bits, and the block in which torch is deterministic."""

import pytest
import torch

from grove_megatron.benchmarks.agreement import DisagreementError, check_repeats, same_bits
from grove_megatron.benchmarks.determinism import deterministic


def test_bits_are_compared_and_not_numbers() -> None:
    zero, minus = torch.zeros(2, 3), -torch.zeros(2, 3)
    assert torch.equal(zero, minus)
    assert not same_bits(zero, minus)
    nan = torch.full((2, 3), float("nan"), dtype=torch.bfloat16)
    assert same_bits(nan, nan.clone())
    assert not same_bits(nan, nan.T.reshape(3, 2).to(torch.float32)[:2])
    assert same_bits(zero.T, torch.zeros(3, 2))


class Drifting(torch.nn.Module):
    """A layer whose gradient, not its output, depends on how often it was called."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.calls, self.by = 0, by

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        self.calls += 1
        drift = 1 + self.by * self.calls
        return x * (self.weight * drift - self.weight.detach() * (drift - 1)), None


def test_two_passes_that_differ_in_one_gradient_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("grove_megatron.benchmarks.ranks.largest", float)
    x = torch.randn(2, 3)
    check_repeats("a layer", Drifting(0.0), x, x)
    with pytest.raises(DisagreementError, match=r"a layer: two passes differ in \(weight\)"):
        check_repeats("a layer", Drifting(0.5), x, x)
    # Another rank found something.
    monkeypatch.setattr("grove_megatron.benchmarks.ranks.largest", lambda number: 1.0)
    with pytest.raises(DisagreementError, match="another rank"):
        check_repeats("a layer", Drifting(0.0), x, x)


def test_torch_is_deterministic_inside_the_block_alone() -> None:
    def fail() -> None:
        with deterministic():
            assert torch.are_deterministic_algorithms_enabled()
            raise KeyError

    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(KeyError):
        fail()
    assert not torch.are_deterministic_algorithms_enabled()
