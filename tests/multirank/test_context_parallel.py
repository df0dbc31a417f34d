"""Context parallelism gives a Grove layer a part of the sequence, and changes nothing else.

The attention that needs TransformerEngine is not here: the layer sees tokens alone.
"""

from pathlib import Path
from typing import Any

import torch

from grove_megatron.moe.counts import Columns
from tests.ranks import Ranks

TARGET = "tests.multirank.context_parallel_cases:trains"


def results(ranks: Ranks, number: int, folder: Path) -> list[dict[str, Any]]:
    ranks.run(number, TARGET, str(folder), number, folder=folder).check()
    return [torch.load(folder / f"{rank}.pt") for rank in range(number)]


def test_two_parts_of_a_sequence_are_the_whole(ranks: Ranks, tmp_path: Path) -> None:
    (whole,) = results(ranks, 1, tmp_path / "whole")
    parts = results(ranks, 2, tmp_path / "parts")
    for name in ("y", "x"):
        quarters = [*whole[name].chunk(4)]
        for rank, part in enumerate(parts):
            expected = torch.cat([quarters[rank], quarters[3 - rank]])
            torch.testing.assert_close(part[name], expected, rtol=1e-5, atol=1e-6)
    expected, found = whole["sums"], parts[0]["sums"]
    assert expected.keys() == found.keys()
    assert len(expected) == 7
    for name, tensor in expected.items():
        if name != "counts":
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    # Everything is counted once, but for who counts.
    holders = Columns.of(experts=8, groups=4, topk=2, ranks=1).widths
    assert [*holders][:2] == ["holders", "biased"]
    assert torch.equal(found["counts"][2:], expected["counts"][2:])
    assert found["counts"][:2].tolist() == [2, 2]
