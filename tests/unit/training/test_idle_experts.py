"""An expert without tokens is told of once."""

import numpy as np

from grove_megatron.training.idle_experts import IdleExperts


def test_an_expert_is_told_of_when_it_becomes_idle() -> None:
    experts, layers = IdleExperts(), ("1", "mtp 1")
    idle_LE = np.array([[0, 99, 0], [99, 0, 0]])
    assert experts.see(idle_LE, layers, 99) is None
    said = experts.see(idle_LE + 1, layers, 100)
    assert said is not None
    assert said.startswith(
        "experts without a token for 100 iterations or more at iteration 100 (layer 1: 1; layer "
        "mtp 1: 0) no longer learn; "
    )
    assert experts.see(idle_LE + 2, layers, 101) is None
    # One gets a token, and later none again; another joins it.
    idle_LE[0, 1] = -2
    assert experts.see(idle_LE + 2, layers, 102) is None
    said = experts.see(np.array([[0, 100, 100], [201, 0, 0]]), layers, 203)
    assert said is not None
    assert "at iteration 203 (layer 1: 1, 2) no" in said
