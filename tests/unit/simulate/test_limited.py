from dataclasses import replace
from math import comb

import pytest
import torch

from grove_megatron.planner.traffic import expected_distinct
from grove_megatron.simulate.limited import limited
from grove_megatron.simulate.routing import generator_of
from grove_megatron.simulate.sizes import Sizes

# Of DeepSeek-V3: eight of 256 experts, from four of eight groups.
SIZES = Sizes(experts=256, topk=8, ranks=8, gpus_per_node=4, tokens=2000, row_bytes=2)


def rows(chosen: int, ranks: int) -> float:
    """Ranks that a token needs, of 20,000."""
    experts = limited(SIZES, 0, 8, chosen).draw(0, 0, 20_000, generator_of(0))
    rank_TK = (experts * ranks // SIZES.experts).sort(1).values
    return float((rank_TK.diff(dim=1) > 0).sum(1).double().mean() + 1)


def expected_of_blocks(ranks: int) -> float:
    """Ranks that hold whole blocks: with j chosen ones each is missed by C(128 - 32 j, 8)."""
    each = 8 // ranks
    missed = sum(
        comb(each, j) * comb(8 - each, 4 - j) / comb(8, 4) * comb(128 - 32 * j, 8) / comb(128, 8)
        for j in range(min(each, 4) + 1)
    )
    return ranks * (1 - missed)


def test_rows_are_those_of_the_closed_form() -> None:
    # A rank's experts are one block: those of four are left, of 32 each.
    assert rows(4, 8) == pytest.approx(4 * (1 - comb(96, 8) / comb(128, 8)), rel=0.01)
    assert expected_of_blocks(8) == pytest.approx(4 * (1 - comb(96, 8) / comb(128, 8)))
    # A block on several ranks, and several on one.
    for ranks in (16, 64):
        assert rows(4, ranks) == pytest.approx(expected_distinct(128, 8, ranks // 2), rel=0.01)
    for ranks in (2, 4):
        assert rows(4, ranks) == pytest.approx(expected_of_blocks(ranks), rel=0.01)


def test_blocks_and_experts_are_as_likely() -> None:
    sizes = replace(SIZES, experts=32, topk=4)
    chosen = limited(sizes, 0, 8, 2).draw(0, 0, 20_000, generator_of(0))
    blocks = [set(row) for row in (chosen // 4).tolist()]
    assert max(map(len, blocks)) == 2
    loads = torch.bincount(chosen.flatten(), minlength=32) / 20_000
    assert loads.tolist() == pytest.approx([4 / 32] * 32, abs=0.0125)
    both = sum(block == {2, 5} for block in blocks) / sum(len(block) == 2 for block in blocks)
    assert both == pytest.approx(1 / comb(8, 2), abs=0.01)


def test_all_blocks_are_no_limit() -> None:
    assert rows(8, 8) == pytest.approx(expected_distinct(256, 8, 8), rel=0.01)
