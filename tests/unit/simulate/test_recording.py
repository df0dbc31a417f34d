import torch

from grove_megatron.simulate.recording import lists
from grove_megatron.simulate.replay import routing_map


def test_lists_are_those_of_the_map() -> None:
    map_TE = torch.rand(50, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    map_TE[0], map_TE[1] = False, True
    found = lists(map_TE)
    assert found.shape == (50, 8)
    assert routing_map(found, 8).equal(map_TE)
    assert found[0].tolist() == [-1] * 8
    assert lists(map_TE[:1]).tolist() == [[-1]]
    assert lists(map_TE[:0]).shape == (0, 1)
